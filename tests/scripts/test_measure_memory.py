"""The arithmetic of the docs; counting tiles takes long, so it runs in a slow group only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow("checkpoints")
def test_the_docs_say_what_is_measured() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "measure_memory")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert "planned: it fits" in done.stdout
    documented = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    for line in done.stdout.splitlines():
        assert line in documented
