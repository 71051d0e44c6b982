"""The access log: what a line says of a request, and what it never does."""

from __future__ import annotations

import logging
from types import ModuleType
from typing import Any

import pytest
from starlette.testclient import TestClient

from pipelines.errors import EngineBusy
from pipelines.request import GenerationResult
from server.api import a1111, basic, openai, stability
from server.observability.request_record import Credits, api_of, outcome_of
from tests.server.conftest import PATH, MakeClient
from tests.server.stub_engine import StubEngine, StubHandle

FORM = {"prompt": "a secret cat", "width": "320", "height": "384", "steps": "12", "seed": "7"}


@pytest.fixture(autouse=True)
def at_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="server.access")


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [record.fields for record in caplog.records if record.name == "server.access"]


def line(caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    (only,) = lines(caplog)
    return only


def post(client: TestClient, picture_file: bytes, **headers: str) -> int:
    files = {"init_image": ("a.png", picture_file)}
    return client.post(PATH, data=FORM, files=files, headers=headers).status_code


class StagedHandle(StubHandle):
    """Ends with the stages that the engine would have noted."""

    async def result(self) -> GenerationResult:
        self.timeline.extend("queue", 100.0, 100.5)
        self.timeline.extend("denoise", 101.0, 101.2)
        self.timeline.extend("denoise", 102.0, 103.25)
        self.timeline.evaluations, self.timeline.rows = 4, 18
        return await super().result()


def test_a_line_says_what_was_asked_and_what_it_took(
    make_client: MakeClient,
    picture_file: bytes,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tests.server.stub_engine.StubHandle", StagedHandle)
    client = make_client(api_keys="k" * 20)
    assert post(client, picture_file, Authorization="k" * 20) == 200
    fields = line(caplog)
    assert fields.pop("seconds") > 0
    assert fields == {
        "method": "POST",
        "path": PATH,
        "status": 200,
        "outcome": "success",
        "client": "testclient",
        "api": "basic",
        "key": "listed key 1",
        "model": "stub",
        "size": "320x384",
        "steps": 12,
        "sampler": "K_DPMPP_2M",
        "seed": 7,
        "asked": 1,
        "images": 1,
        "evaluations": 4,
        "rows_shared": 4.5,
        "queue_seconds": 0.5,
        "denoise_seconds": 2.25,
    }


@pytest.mark.parametrize("asked", [False, True])
def test_prompts_are_in_it_only_if_the_operator_wants_them(
    make_client: MakeClient, picture_file: bytes, caplog: pytest.LogCaptureFixture, asked: bool
) -> None:
    caplog.set_level(logging.DEBUG)
    assert post(make_client(log_prompts=asked), picture_file) == 200
    ours = [r for r in caplog.records if r.name.split(".")[0] in ("server", "pipelines", "models")]
    assert ("secret" in str([(r.getMessage(), vars(r)) for r in ours])) is asked
    assert line(caplog).get("prompt") == ("a secret cat" if asked else None)


def test_what_was_refused_has_its_outcome_and_what_is_known_of_it(
    client: TestClient, engine: StubEngine, picture_file: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    engine.refusal = EngineBusy("the queue is full", retry_after=3)
    assert post(client, picture_file) == 503
    fields = line(caplog)
    assert (fields["outcome"], fields["size"], fields["images"]) == ("unavailable", "320x384", 0)


def test_a_stream_that_ends_with_a_failure_has_that_status(
    client: TestClient, engine: StubEngine, picture_file: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    engine.outcome = EngineBusy("no", retry_after=3)
    assert post(client, picture_file, Accept="text/event-stream") == 200
    assert (line(caplog)["status"], line(caplog)["outcome"]) == (503, "unavailable")


def test_a_request_without_a_key_has_neither_key_nor_size(
    make_client: MakeClient, picture_file: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    assert post(make_client(api_keys="k" * 20), picture_file, Authorization="wrong-key") == 401
    fields = line(caplog)
    assert fields["outcome"] == "unauthorized"
    assert not fields.keys() & {"key", "size", "model"}
    assert "wrong-key" not in str(fields)


@pytest.mark.parametrize("module", [basic, openai, stability, a1111])
def test_every_route_of_an_api_is_counted_as_its(module: ModuleType) -> None:
    paths = [route.path for route in module.router.routes]
    assert paths
    assert {api_of(path) for path in paths} == {module.__name__.rpartition(".")[2]}


@pytest.mark.parametrize(
    ("path", "api"),
    [
        (PATH, "basic"),
        ("/v1/images/edits", "openai"),
        ("/v1/generation/stable-diffusion-v1-6/image-to-image", "stability"),
        ("/sdapi/v1/img2img", "a1111"),
        ("/v1", "other"),
        ("/docs", "other"),
        ("", "other"),
    ],
)
def test_the_api_of_a_path(path: str, api: str) -> None:
    assert api_of(path) == api


def test_every_status_has_one_of_a_dozen_outcomes() -> None:
    outcomes = {outcome_of(status) for status in range(100, 600)}
    assert len(outcomes) <= 12
    assert [outcome_of(s) for s in (200, 413, 500)] == ["success", "invalid", "failed"]


def test_what_is_not_charged_of_a_reservation_is_released() -> None:
    some, none = Credits(reserved=12), Credits(reserved=12)
    some.end(4)
    none.end()
    assert (some.charged, some.released) == (4, 8)
    assert (none.charged, none.released) == (0, 12)
