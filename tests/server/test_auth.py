from __future__ import annotations

import io
import logging

import pytest
from starlette.testclient import TestClient

from server.observability.logs import JsonFormatter, TextFormatter
from tests.server.conftest import PATH, MakeClient
from tests.server.failures import assert_failure
from tests.server.raw_asgi import Message, call

KEYS = "first-key, second key"

GOOD = [
    {"Authentication": "first-key"},
    {"Authorization": "first-key"},
    {"Authentication": "second key"},
    {"Authentication": "Bearer first-key"},
    {"Authorization": "Bearer first-key"},
    {"Authorization": "bearer   first-key "},
    {"authorization": "first-key"},
    {"Authentication": "wrong", "Authorization": "first-key"},
]
BAD = [
    {"Authentication": "wrong-key"},
    {"Authorization": "Bearer wrong-key"},
    {"Authorization": "first-key2"},
    {"Authorization": "FIRST-KEY"},
    {"Authorization": "Basic first-key"},
    {"Authorization": "first-key, second key"},
    {"Authentication": "wrong", "Authorization": "wrong"},
]
NONE: list[dict[str, str]] = [
    {},
    {"Authorization": ""},
    {"Authorization": "Bearer"},
    {"Authorization": "Bearer "},
    {"X-Api-Key": "first-key"},
]


@pytest.mark.parametrize("headers", GOOD)
def test_known_keys(make_client: MakeClient, picture_file: bytes, headers: dict[str, str]) -> None:
    client = make_client(api_keys=KEYS)
    response = client.post(
        PATH, data={"prompt": "a"}, files={"init_image": ("a", picture_file)}, headers=headers
    )
    assert response.status_code == 200


@pytest.mark.parametrize("headers", BAD)
def test_unknown_keys(make_client: MakeClient, headers: dict[str, str]) -> None:
    response = make_client(api_keys=KEYS).post(PATH, headers=headers)
    assert_failure(response, 401, "the API key is not known")
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("headers", NONE)
def test_no_key(make_client: MakeClient, headers: dict[str, str]) -> None:
    response = make_client(api_keys=KEYS).post(PATH, headers=headers)
    assert_failure(response, 401, "no API key", "Authentication", "Authorization")


def test_the_body_is_not_read_before_the_key(make_client: MakeClient) -> None:
    async def receive() -> Message:
        raise AssertionError("the body was read")

    headers = [(b"content-type", b"multipart/form-data; boundary=x")]
    sent = call(make_client(api_keys=KEYS), PATH, receive, headers)
    assert sent[0]["status"] == 401


def test_health_and_docs_are_open(make_client: MakeClient) -> None:
    client = make_client(api_keys=KEYS)
    for path in ("/health/live", "/health/ready", "/docs", "/openapi.json"):
        assert client.get(path).status_code == 200


def test_without_keys_everyone_on_this_machine_is_let_in(client: TestClient) -> None:
    assert_failure(client.post(PATH), 415)
    assert_failure(client.post(PATH, headers={"Authorization": "anything"}), 415)


def test_no_auth_wins_over_keys(make_client: MakeClient) -> None:
    assert_failure(make_client(api_keys=KEYS, no_auth=True).post(PATH), 415)


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_no_key_reaches_the_log(make_client: MakeClient, formatter: logging.Formatter) -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        client = make_client(api_keys="a-secret-key")
        client.post(f"{PATH}?key=a-secret-key", headers={"Authorization": "a-secret-key"})
        client.post(PATH, headers={"Authentication": "Bearer a-secret-keyX"})
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    assert "server.access" in written.getvalue()
    assert "a-secret-key" not in written.getvalue()
