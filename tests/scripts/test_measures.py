"""The measures of the embedded model: what is asked, what is counted, how it is printed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.paths import ROOT
from scripts.training import judge as judges
from scripts.training.judge import Judge, load_judge, train_judge
from scripts.training.measure_embedded import class_table, row
from scripts.training.measures import (
    EDITS,
    Judged,
    by_class,
    edits,
    from_drawings,
    night_edits,
    of_edits,
    of_things,
    shares,
)
from scripts.training.world.scene import HELD_OUT

JUDGE = Path(__file__).parents[1] / "data" / "judge.safetensors"


def seen(attribute: str, wanted: str, found: str | None) -> Judged:
    return Judged({attribute: wanted}, {attribute: found})


PICTURES = [
    seen("colour", "white", "white"),
    seen("kind", "cat", "cat"),
    seen("kind", "cat", "fish"),
    seen("style", "anime", None),
    seen("style", "anime", "enhance"),
    seen("style", "anime", "enhance"),
    seen("style", "origami", "origami"),
    seen("background", "snow", "sky"),
]


def test_each_attribute_is_counted_where_it_was_asked_for() -> None:
    assert shares(PICTURES) == {"colour": 1, "kind": 0.5, "background": 0, "style": 0.25}
    assert {name: len(found) for name, found in by_class(PICTURES, "style").items()} == {
        "anime": 3,
        "origami": 1,
    }


def test_a_table_names_the_worst_first_and_what_it_was_taken_for() -> None:
    drawings = [seen("style", "anime", "anime"), seen("style", "origami", None)]
    lines = class_table(PICTURES, drawings, "style").splitlines()[3:]
    assert lines == [
        "| anime | 0 | 100 | 3 | enhance 2, no style 1 |",
        "| origami | 100 | 0 | 1 |  |",
    ]
    assert row("all", shares(PICTURES)) == "| all | 100 | 50 | 0 | 25 | 43.8 |"


def test_every_edit_ends_on_a_held_out_combination_and_is_judged_for_its_change() -> None:
    asked = edits(40, seed=32)
    assert [edit.changed for edit in asked] == list(EDITS) * 10
    for edit in asked:
        thing = edit.target.things[0]
        assert (thing.kind, thing.colour, edit.target.background) in HELD_OUT
    found = from_drawings(load_judge(JUDGE, train_if_missing=False), of_edits(asked))
    # Of the drawing that was asked for itself the judge reads most right.
    assert np.mean(list(shares(found).values())) > 0.75


def test_a_night_is_asked_of_a_picture_by_day_and_never_drawn_in_training() -> None:
    asked = night_edits(20)
    assert len(asked) == 20
    for edit in asked:
        thing = edit.target.things[0]
        assert edit.source.background != edit.target.background == "night"
        assert (thing.kind, thing.colour, "night") in HELD_OUT
        assert edit.changed == "background"


def test_the_square_around_a_changed_thing_shows_it_among_others() -> None:
    judge = load_judge(JUDGE, train_if_missing=False)
    for things in (1, 3):
        found = of_things(None, judge, things, 40)
        assert np.mean([one.right(name) for one in found for name in one.wanted]) > 0.6


def test_kinds_are_read_by_a_body_of_their_own() -> None:
    judge = Judge()
    picture = torch.rand(1, 3, 320, 320) * 2 - 1
    judge(picture)["kind"].sum().backward()
    moved = {name for name, one in judge.named_parameters() if one.grad is not None}
    assert {name.rsplit(".", 1)[0] for name in moved if "bodies" not in name} == {"heads.kind"}
    assert {name.split(".")[1] for name in moved if "bodies" in name} == {"shapes"}


@pytest.mark.process
def test_a_missing_judge_is_trained_whole_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(900)
    start = Judge().state_dict()
    monkeypatch.setattr(judges, "train_judge", lambda: train_judge(12, 2))
    path = tmp_path / "new" / "judge.safetensors"
    made, kept = load_judge(path).state_dict(), load_judge(path, False).state_dict()
    assert all(torch.equal(made[name], one) for name, one in kept.items())
    assert not any(torch.allclose(made[name], one, atol=1e-4) for name, one in start.items())


def test_a_judge_that_was_cut_off_while_it_was_written_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(_: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(judges, "train_judge", Judge)
    monkeypatch.setattr("safetensors.torch.save_file", cut_off)
    path = tmp_path / "judge.safetensors"
    with pytest.raises(KeyboardInterrupt):
        load_judge(path)
    assert not path.exists()


@pytest.mark.slow("weights")
def test_the_script_prints_tables_of_what_ships() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "measure_embedded"), "--count", "16"]
    command += ["--parts", "figures", "things"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "| 16 edits at image_strength 0.35 |" in printed
    for head in ("| kind | % right", "| style | % right", "| things | % right"):
        assert head in printed
