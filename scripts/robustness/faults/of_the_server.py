"""The server's process is killed or told to end, or its engine goes wrong."""

from __future__ import annotations

import signal
import time

import requests
import sqlalchemy as sa

from scripts.robustness.faults.injected import POISONED
from scripts.robustness.faults.scene import PATIENCE, PICTURE, Fault, Scene, on_sqlite
from scripts.robustness.kill_test import FORM, PATH, rows
from server.accounts.tables import reservations

KILLS, ENDS, POISONS = 3, 2, 4
EXIT_SECONDS = 30.0
"""What Kubernetes gives a pod to end in, where it is told nothing else."""
PATCH = "scripts.robustness.faults.injected"


def killed(scene: Scene) -> None:
    """SIGKILL in the middle of the load, and a restart."""
    for number in range(KILLS):
        time.sleep(0.5 + 0.3 * number)
        scene.mark()
        scene.lives.end(signal.SIGKILL)
        scene.restart()
    scene.notes.append(f"{KILLS} kills")


def terminated(scene: Scene) -> None:
    """SIGTERM in the middle of a batch, and a restart."""
    slowest = 0.0
    for _ in range(ENDS):
        time.sleep(1.0)
        scene.mark()
        began = time.monotonic()
        status = scene.lives.end(signal.SIGTERM)
        slowest = max(slowest, time.monotonic() - began)
        if status:
            scene.problems.append(f"ended with status {status}")
        scene.restart()
    if slowest > EXIT_SECONDS:
        scene.problems.append(f"took {slowest:.0f} s to end")
    scene.notes.append(f"exit 0 within {slowest:.1f} s, {ENDS} times")


def engine_dies(scene: Scene) -> None:
    """An exception in the engine's thread: the probe says so, and the orchestrator restarts it."""
    time.sleep(1.0)
    scene.mark()
    began = time.monotonic()
    scene.order("thread")
    scene.wait_until("the liveness probe fails", lambda: _live(scene) == 503)
    scene.notes.append(f"not live after {time.monotonic() - began:.1f} s")
    scene.order("")
    if status := scene.lives.end(signal.SIGTERM):
        scene.notes.append(f"exit {status}")
    scene.restart()


def _live(scene: Scene) -> int:
    return requests.get(scene.lives.url + "/health/live", timeout=PATIENCE).status_code


def no_memory(scene: Scene) -> None:
    """One forward in three finds no memory."""
    scene.order("memory")
    time.sleep(5.0)
    scene.order("")
    scene.mark()
    scene.wait_for_answers()


def nan(scene: Scene) -> None:
    """Requests whose latents become NaN, beside others whose bytes are to stay the same."""
    scene.order("nan")
    ids = [f"nan-{number}" for number in range(POISONS)]
    for request_id in ids:
        answer = requests.post(
            scene.lives.url + PATH,
            FORM | {"cfg_scale": POISONED},
            files={"init_image": ("a.png", PICTURE)},
            headers={"Authorization": scene.api_key, "X-Request-Id": request_id},
            timeout=PATIENCE,
        )
        if answer.status_code != 500:
            scene.problems.append(f"NaN was answered {answer.status_code}")
    scene.order("")
    columns = reservations.c
    paid = sa.select(columns.id).where(columns.request_id.in_(ids), columns.state == "settled")
    if rows(scene.place.settings["database_url"], paid):
        scene.problems.append("NaN was charged")
    scene.notes.append(f"{POISONS} requests of NaN were answered 500, at no charge")
    scene.mark()
    scene.wait_for_answers()


FAULTS = (
    Fault("kill -9 and restart", killed, on_sqlite),
    Fault("SIGTERM in mid-batch", terminated, on_sqlite),
    Fault("exception in the engine's thread", engine_dies, on_sqlite, PATCH),
    Fault("out of memory", no_memory, on_sqlite, PATCH),
    Fault("NaN", nan, on_sqlite, PATCH),
)
