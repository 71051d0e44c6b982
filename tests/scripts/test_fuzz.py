"""The fuzzers find nothing in a bounded time."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.server.server_process import ROOT


@pytest.mark.slow("benchmarks")
@pytest.mark.parametrize("target", ["pictures", "multipart", "api"])
def test_nothing_is_found(target: str) -> None:
    pytest.importorskip("schemathesis" if target == "api" else "atheris")
    done = subprocess.run(
        [sys.executable, "scripts/fuzz", target, "--seconds", "60"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert done.stdout.endswith("nothing was found\n")
