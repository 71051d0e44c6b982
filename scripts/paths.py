"""The repository's root, and how a process that is started finds these packages."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def python_path() -> str:
    """Return a PYTHONPATH that begins with the root, in which `scripts` and the packages are."""
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
