"""The times of one request through each protocol, on a real server."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.benchmarks.apis import measure
from tests.server.server_process import PRODUCT, running_server


@pytest.mark.slow("benchmarks")
def test_each_protocol_is_asked_in_each_round(tmp_path: Path) -> None:
    with running_server(PRODUCT, tmp_path, "serve", no_auth="true") as server:
        server.wait_for("/health/ready")
        seconds = measure(server.url, rounds=2, steps=10)
    assert set(seconds) == {"contract", "openai", "stability", "a1111"}
    assert all(len(times) == 2 and min(times) > 0 for times in seconds.values())
