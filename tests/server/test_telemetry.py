from __future__ import annotations

import io
import json
import logging
import sys

import pytest
from starlette.testclient import TestClient

from server.observability.logs import JsonFormatter, TextFormatter, configure_logging
from tests.server.conftest import MakeClient
from tests.server.stub_engine import StubEngine


def record(message: str, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("server.x", logging.INFO, "f.py", 1, message, None, None)
    made.fields = fields
    return made


def test_a_text_line() -> None:
    line = TextFormatter().format(record("hello there", path="/a b", status=200))
    time, rest = line.split(" ", 1)
    assert time.startswith("time=20")
    assert time.endswith("Z")
    assert rest == 'level=info logger=server.x message="hello there" path="/a b" status=200'


def test_what_a_client_sends_cannot_forge_a_line() -> None:
    line = TextFormatter().format(record("x", path='/a\nlevel=error "\x1b[31m'))
    assert "\n" not in line
    assert "\x1b" not in line
    assert r'path="/a\nlevel=error \"\u001b[31m"' in line


def test_a_json_line_holds_the_traceback() -> None:
    made = record("oh", n=1)
    try:
        raise ValueError("why")
    except ValueError:
        made.exc_info = sys.exc_info()
    line = JsonFormatter().format(made)
    assert "\n" not in line
    fields = json.loads(line)
    assert (fields["message"], fields["n"], fields["level"]) == ("oh", 1, "info")
    assert "ValueError: why" in fields["traceback"]


def test_configured_logging_writes_access_lines(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    configure_logging("info", "json")
    client.get("/health/live")
    client.get("/nothing?secret=1", headers={"X-Request-Id": "id-3"})
    (line,) = written.getvalue().splitlines()  # a probe is not worth a line
    fields = json.loads(line)
    assert fields["logger"] == "server.access"
    assert (fields["method"], fields["path"], fields["status"]) == ("GET", "/nothing", 404)
    assert fields["request_id"] == "id-3"
    assert fields["seconds"] >= 0


def test_probes_are_logged_at_debug_also_when_they_fail(
    make_client: MakeClient, engine: StubEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, prefixed = make_client(), make_client(root_path="/images")
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    configure_logging("info", "json")
    engine.ready = False
    assert client.get("/health/ready").status_code == 503
    assert prefixed.get("/images/health/ready").status_code == 503
    assert written.getvalue() == ""
    # What only looks like a probe has its line.
    assert client.get("/x/health/ready").status_code == 404
    assert len(written.getvalue().splitlines()) == 1
    configure_logging("debug", "json")
    client.get("/health/ready")
    fields = json.loads(written.getvalue().splitlines()[-1])
    assert (fields["level"], fields["status"]) == ("debug", 503)


@pytest.mark.parametrize("library", ["aiosqlite", "PIL.PngImagePlugin", "asyncio", "new.library"])
def test_libraries_say_nothing_at_debug(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    configure_logging("debug", "text")
    logging.getLogger(library).debug("parameters: secret")
    logging.getLogger("server.x").debug("ours")
    assert "secret" not in written.getvalue()
    assert "ours" in written.getvalue()
    configure_logging("error", "text")
    logging.getLogger(library).warning("too low")
    logging.getLogger("server.x").warning("too low")
    assert "too low" not in written.getvalue()
