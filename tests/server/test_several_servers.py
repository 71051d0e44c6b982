"""Server processes beside one another on one database: none touches what runs in another."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from server.accounts.types import Balance
from tests.server.conftest import PATH
from tests.server.server_process import ServerProcess, running_server
from tests.server.team import Team

pytestmark = pytest.mark.process


STUB = "tests.server.stub_server"


def ask(url: str, key: str, prompt: str, picture: bytes) -> requests.Response:
    return requests.post(
        url + PATH,
        data={"prompt": prompt, "width": "320", "height": "320", "steps": "10"},
        files={"init_image": ("a.png", picture)},
        headers={"Authorization": key},
        timeout=120,
    )


def own_url(server: ServerProcess) -> str:
    """Where a server listens that picked a port for itself."""
    found = re.search(r"url=(\S+)", server.log_line("message=listening"))
    assert found is not None
    return found[1]


@pytest.mark.slow("kill")
def test_no_second_server_touches_what_the_first_runs(
    database_url: str, tmp_path: Path, picture_file: bytes
) -> None:
    team = Team(database_url)
    key = team.make_key()
    folders = [tmp_path / name for name in ("first", "same", "free", "address")]
    for folder in folders:
        folder.mkdir()
    gate = tmp_path / "gate"
    shared: dict[str, Any] = {"database_url": database_url, "data_dir": str(tmp_path)}
    with (
        running_server(STUB, folders[0], port="0", **shared) as first,
        ThreadPoolExecutor() as pool,
    ):
        url = own_url(first)
        port = url.rpartition(":")[2]
        running = [pool.submit(ask, url, key, str(gate), picture_file) for _ in range(4)]
        team.wait_for({"open": 4})
        with running_server(STUB, folders[1], port=port, **shared) as same:
            assert same.exit_status() == 1
            said = f"port {port} on 127.0.0.1 is in use; choose another with --port"
            assert [line for line in same.log.splitlines() if "level=" not in line] == [said]
        with (
            running_server(STUB, folders[2], port="0", **shared) as free,
            running_server(STUB, folders[3], port=port, host="127.0.0.2", **shared) as address,
        ):
            for other in (own_url(free), own_url(address)):
                assert ask(other, key, "0", picture_file).status_code == 200
            assert team.states() == {"open": 4, "settled": 2}
            gate.touch()
            assert [answer.result().status_code for answer in running] == [200] * 4
        assert team.balance() == Balance(76, 0)
    assert team.problems() == []
