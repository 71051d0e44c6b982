"""Progress as server-sent events on the same endpoint."""

from __future__ import annotations

import json

import requests

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
    steps = [data["step"] for _, data in events[:-1]]
    assert steps == sorted(steps)
    assert events[-2][1] == {"step": 8, "steps": 8, "queue_position": 0}
    name, envelope = events[-1]
    assert name == "result"
    plain = client.post(picture=small_picture, prompt="a blue circle", **fields).json()
    assert envelope == plain


def test_bad_input_is_an_ordinary_failure(client: Client, small_picture: bytes) -> None:
    response = post(client, small_picture, steps=5)
    assert response.status_code == 400
    assert response.json()["code"] == -1
