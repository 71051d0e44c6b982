"""Many requests at the same time on a balance that is enough for some of them."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests

from tests.server.pictures import file_of, gradient
from tests.server.server_process import running_server
from tests.server.team import Team

PATH = "/api/generate/basic/imageToImage"
PRICE = 4
FORM = {"prompt": "0.05", "width": 320, "height": 320, "steps": 10}
"""A picture of 0.4 credits; the waiting engine reads the prompt as seconds."""


def spend_at_once(
    url: str, folder: Path, *, count: int = 200, tenths: int = 500
) -> dict[str, int | str]:
    """What `count` requests that start together get of `tenths`, from a real server."""
    team = Team(url)
    key = team.make_key("crowd", tenths)
    picture = file_of(gradient(320, 320))
    start = threading.Barrier(count)

    with running_server("tests.server.stub_server", folder, database_url=url) as server:
        server.wait_for("/health/ready")

        def ask(_: int) -> int:
            start.wait()
            response = requests.post(
                server.url + PATH,
                data=FORM,
                files={"init_image": ("a.png", picture)},
                headers={"Authorization": key},
                timeout=300,
            )
            return response.status_code

        with ThreadPoolExecutor(count) as pool:
            statuses = Counter(pool.map(ask, range(count)))
    balance = team.balance("crowd")
    return {
        "affordable": min(count, tenths // PRICE),
        "pictures": statuses.pop(200, 0),
        "refused with 402": statuses.pop(402, 0),
        "other answers": statuses.total(),
        "tenths left": balance.available,
        "tenths still held": balance.held,
        "problems found by the audit": len(team.problems()),
    }
