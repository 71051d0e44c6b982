"""Progress as server-sent events on the same endpoint."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import requests
from PIL import Image

from tests.contract.conftest import KEY, PATH, QUICK, Client

EVENTS = {"Accept": "text/event-stream", "Authorization": KEY}


def read_events(response: requests.Response) -> list[tuple[str, dict[str, object]]]:
    events = []
    for block in response.content.decode().strip().split("\n\n"):
        name, data = block.split("\n")
        events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return events


def post(client: Client, picture: bytes, **fields: object) -> requests.Response:
    return requests.post(
        client.server.url + PATH,
        data={"prompt": "a blue circle", **fields},
        files={"init_image": ("init_image.png", picture)},
        headers=EVENTS,
        timeout=300,
    )


def test_progress_and_then_the_same_answer(client: Client, small_picture: bytes) -> None:
    fields = {**QUICK, "image_strength": 0.2, "seed": 11}
    response = post(client, small_picture, **fields)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    events = read_events(response)
    assert {name for name, _ in events[:-1]} == {"progress"}
    # Two of the ten steps are skipped.
    counted = [(data["step"], data["evaluation"]) for _, data in events[:-1]]
    assert counted == sorted(counted)
    assert set(counted) <= {(2 + done, done) for done in range(9)}
    last = {"step": 10, "steps": 10, "evaluation": 8, "evaluations": 8, "queue_position": 0}
    seconds = [data.pop("seconds_left") for _, data in events[:-1]]
    assert all(left >= 0 for left in seconds)
    stages = [data.pop("stage") for _, data in events[:-1]]
    assert stages == sorted(stages, key=["queued", "encoding", "denoising", "decoding"].index)
    assert "denoising" in stages
    assert stages[-1] == "decoding"
    assert events[-2][1] == last
    name, envelope = events[-1]
    assert name == "result"
    plain = client.post(picture=small_picture, prompt="a blue circle", **fields).json()
    assert envelope == plain


def test_samplers_with_two_evaluations_a_step(client: Client, small_picture: bytes) -> None:
    events = read_events(
        post(client, small_picture, **{**QUICK, "image_strength": 0.8, "sampler": "K_HEUN"})
    )
    counted = [(data["step"], data["evaluation"]) for _, data in events[:-1]]
    assert counted == sorted(counted)
    # The ninth step in two evaluations, the tenth in one.
    assert set(counted) <= {(8, 0), (8, 1), (9, 2), (10, 3)}
    assert counted[-1] == (10, 3)
    assert {(data["steps"], data["evaluations"]) for _, data in events[:-1]} == {(10, 3)}


def test_without_steps_there_is_only_the_result(client: Client, small_picture: bytes) -> None:
    events = read_events(post(client, small_picture, **{**QUICK, "image_strength": 1}))
    assert [name for name, _ in events] == ["result"]


def test_bad_input_is_an_ordinary_failure(client: Client, small_picture: bytes) -> None:
    response = post(client, small_picture, steps=5)
    assert response.status_code == 400
    assert response.json()["code"] == -1


def test_previews_are_small_pictures_of_what_comes(client: Client, small_picture: bytes) -> None:
    response = post(client, small_picture, **QUICK, previews="true", seed=3)
    events = read_events(response)
    shown = [data["preview"] for name, data in events if name == "progress" and "preview" in data]
    assert shown
    preview = Image.open(io.BytesIO(base64.b64decode(str(shown[-1]))))
    data = events[-1][1]["data"]
    assert isinstance(data, dict)
    picture = Image.open(io.BytesIO(base64.b64decode(data["image"])))
    assert preview.size == (40, 40)
    small = np.asarray(picture.resize((40, 40), Image.Resampling.BOX)).astype(float)
    assert np.abs(small - np.asarray(preview)).mean() < 30


def test_a_preview_that_is_neither_true_nor_false(client: Client, small_picture: bytes) -> None:
    response = post(client, small_picture, previews="perhaps")
    assert response.status_code == 400
    assert "previews: perhaps is not true or false" in response.json()["message"]
