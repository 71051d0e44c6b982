"""What a long text costs, and that what is learnt of one thing says nothing of another."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.scheduler.batching import GroupKey
from pipelines.scheduler.cost_model import CostTable, ImageCost, StepPoint, TextCost
from pipelines.scheduler.request_state import RequestState
from pipelines.scheduler.scheduler import Scheduler
from pipelines.scheduler.work import Encode

LONG = 71 * 77


def make_program(text: TextCost | None = None) -> CostTable:
    """A second for each row at 1600 pixels, in proportion."""
    points = [
        StepPoint(pixels, rows, rows * pixels / 1600) for pixels in (1600, 4096) for rows in (1, 16)
    ]
    encode, decode = ImageCost(0.0, 1 / 1600), ImageCost(0.0, 2 / 1600)
    return CostTable(points, encode, decode, text=text or TextCost())


def known() -> CostTable:
    return make_program(TextCost(ImageCost(0.01, 0.01 / 1600), encode=0.5))


def test_a_long_text_costs_by_row_chunk_and_pixel() -> None:
    table = known()
    assert table.step_seconds(1600, 2) == table.step_seconds(1600, 2, 77) == pytest.approx(2.0)
    assert table.step_seconds(1600, 2, LONG) == pytest.approx(2.0 + 2 * 70 * 0.02)
    assert table.step_seconds(3200, 1, 2 * 77) == pytest.approx(2.0 + 0.03)


def test_a_request_with_a_long_text_is_predicted_to_take_longer() -> None:
    scheduler = Scheduler(known())
    plain = RequestState(1, GroupKey(40, 40, 77, False), 2, 10, arrived=0.0, text_chunks=2)
    long = RequestState(2, GroupKey(40, 40, LONG, False), 2, 10, arrived=0.0, text_chunks=72)
    more = 10 * 2 * 70 * 0.02 + 70 * 0.5
    assert scheduler.predictions.alone(long) - scheduler.predictions.alone(plain) == pytest.approx(
        more
    )
    assert scheduler.offer(long, 0.0) is None
    work = scheduler.plan()
    assert isinstance(work, Encode)
    assert work.seconds == pytest.approx(1.0 + 72 * 0.5)


@pytest.mark.parametrize("table", [make_program(), known()])
def test_a_long_step_teaches_of_long_texts_alone(table: CostTable) -> None:
    points, encode = table.to_json()["steps"], table.encode
    for _ in range(200):
        table.observe_step(1600, 2, 9.0, LONG)
    assert table.step_seconds(1600, 2, LONG) == pytest.approx(9.0, rel=0.02)
    assert table.to_json()["steps"] == points
    assert table.encode == encode
    for _ in range(200):
        table.observe_step(1600, 2, 1.0, LONG)  # faster than without the text
    assert table.step_seconds(1600, 2, LONG) == pytest.approx(2.0, rel=0.02)
    assert table.to_json()["steps"] == points


def test_circular_padding_has_a_factor_of_its_own() -> None:
    table = known()
    points = table.to_json()["steps"]
    for _ in range(200):
        table.observe_step(1600, 2, 3.0, 77, tile=True)
    assert table.step_seconds(1600, 2, 77, tile=True) == pytest.approx(3.0, rel=0.02)
    assert table.step_seconds(1600, 2) == pytest.approx(2.0)
    assert table.to_json()["steps"] == points


def test_encoding_a_long_text_teaches_nothing_of_pictures() -> None:
    table = known()
    for _ in range(200):
        table.observe_encode(1600, 0.25 + 72 * 0.1, parts=4, text_chunks=72)
    assert table.encode_seconds(1600) == pytest.approx(1.0)
    assert table.text.encode == pytest.approx(0.1, rel=0.02)
    for _ in range(200):
        table.observe_encode(1600, 0.5 + 2 * table.text.encode, parts=4, text_chunks=2)
    assert table.encode_seconds(1600) == pytest.approx(2.0, rel=0.02)


def test_one_hiccup_moves_a_prediction_by_less_than_half() -> None:
    table = known()
    table.observe_step(1600, 2, 1000.0)
    table.observe_decode(1600, 1000.0)
    assert table.step_seconds(1600, 2) < 1.5 * 2.0
    assert table.decode_seconds(1600) < 1.5 * 2.0


def test_a_table_keeps_what_texts_cost_and_files_without_it_are_read(tmp_path: Path) -> None:
    table = known()
    table.observe_step(1600, 2, 3.0, 77, tile=True)
    table.save(tmp_path / "table.json")
    again = CostTable.load(tmp_path / "table.json")
    assert (again.text, again.tile) == (table.text, table.tile)
    older = table.to_json()
    del older["text"], older["tile"]
    plain = CostTable.from_json(older)
    assert plain.step_seconds(1600, 2, LONG, tile=True) == plain.step_seconds(1600, 2)
