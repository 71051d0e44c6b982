"""How tests share several workers: `pytest -n 2`, as `scripts/test` starts it."""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

ONE_WORKER = ("tests/browser", "tests/clients", "tests/contract", "tests/gpu")
"""Folders whose tests share a server with a real model, or a card."""


class ByFile(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    """Keeps a file on one worker, and a folder whose tests share a server.

    Work goes out in the order of the folders, which has those first: none of them is what all
    others wait for at the end.
    """

    def __init__(self, config: pytest.Config, log: Any = None) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return next((folder for folder in ONE_WORKER if file.startswith(f"{folder}/")), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    return ByFile(config, log)
