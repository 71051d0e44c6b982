"""The proof that no credit is lost when the server is killed, in its short version."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.server.server_process import ROOT


@pytest.mark.slow("kill")
@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
def test_killed_three_times_under_load(database_url: str, request: pytest.FixtureRequest) -> None:
    kind = database_url.split(":")[0]
    command = [sys.executable, str(ROOT / "scripts" / "kill_test"), "--kills", "3"]
    done = subprocess.run(
        [*command, "--database", kind], cwd=ROOT, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:]]
    table = {name: int(count) for name, count in lines}
    assert table["kills"] == 3
    assert table["had and charged once"] > 0
    assert table["had unpaid"] == table["paid twice"] == 0
    assert table["open after a restart"] == table["problems found by the audit"] == 0
