"""A checkpoint of full size: 2 GB are written, so it runs in a slow group only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow("checkpoints")
def test_a_full_size_checkpoint_loads_within_its_memory(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "check_full_size"), "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "686 of 686 tensors equal" in done.stdout
    assert done.stdout.endswith("all is as it should be\n")
