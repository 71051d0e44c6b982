"""Put a real server through faults under load, one after another, and count what became of it.

.venv/bin/python scripts/faults [FAULT] ... [--list]

Each fault gets a server of its own on a tiny model of random weights, with accounts; four clients
ask for pictures of known seeds all the time, each until it has it, under a key that makes asking
again free of charge. Prints a table and exits with 1 if a picture was lost or wrong, charged twice
or unpaid, if a request hung, right answers did not go on, or memory did not come back. FAULT is a
part of a fault's name.
"""

from __future__ import annotations

import argparse
import math
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import requests

from scripts.robustness.faults import of_clients, of_stores, of_the_server
from scripts.robustness.faults.injected import FILE_VARIABLE
from scripts.robustness.faults.scene import SEEDS, SETTINGS, Crowd, Fault, NotHere, Scene
from scripts.robustness.kill_test import OPEN, judge, make_keys, on_database, rows
from scripts.robustness.server_lives import Lives, Nursery
from server.accounts.api_keys import KeyStore
from server.accounts.audit import audit
from server.accounts.db import Database
from tests.tiny_model import write_tiny_model

FAULTS = (*of_the_server.FAULTS, *of_stores.FAULTS, *of_clients.FAULTS)
WARM_PICTURES = 16
"""Made before memory is first looked at: caches and pools are full then."""
MEMORY = 1.05
"""What the server may have of the memory it had before the fault."""
ROUNDS = 3
"""Of a rehearsed fault, at most, until memory stays: a leak grows with each, a busy heap once."""
SETTLE_SECONDS = 30.0


@dataclass
class Row:
    """What became of one fault."""

    fault: str
    pictures: int = 0
    tries: int = 0
    lost: int = 0
    charged_twice: int = 0
    hung: int = 0
    recovered: float | None = None
    memory: float = 1.0
    seen: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        recovered = "never" if self.recovered is None else f"{self.recovered:.1f} s"
        counts = (self.pictures, self.tries, self.lost, self.charged_twice, self.hung)
        cells = [*map(str, counts), recovered, f"{100 * (self.memory - 1):+.0f} %", self.seen]
        return f"| {' | '.join([self.fault, *cells])} |"


HEAD = (
    "| fault | pictures | tries | lost | double-charged | hung | recovered in | memory | seen |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def tried(fault: Fault, nursery: Nursery, model: Path, folder: Path) -> Row:
    """Put a server through one fault. Raises NotHere."""
    with ExitStack() as stack:
        place = stack.enter_context(fault.place(folder))
        url = place.settings["database_url"]
        key, _ = make_keys(url)
        orders = folder / "orders"
        orders.write_text("")
        settings = {"model": str(model), "data_dir": str(folder), **SETTINGS, **place.settings}
        lives = Lives(nursery, fault.patch, **settings)
        lives.environment[FILE_VARIABLE] = str(orders)
        stack.callback(lives.close)
        lives.start()
        crowd = Crowd(lives.url, key, {})
        with requests.Session() as session:
            for seed in SEEDS:
                crowd.want(session, seed)
        scene = Scene(lives, crowd, place, orders, key, _poor_key(url))
        stack.callback(crowd.end)
        crowd.start()
        scene.wait_for_answers(WARM_PICTURES)
        if fault.rehearsed:
            fault.happen(scene)
            scene.forget()

        def happen() -> None:
            fault.happen(scene)
            scene.wait_for_answers(WARM_PICTURES)

        memory = growth(
            happen,
            lambda: scene.server.memory_info().rss,
            rounds=ROUNDS if fault.rehearsed else 1,
        )
        crowd.end()
        return _row(fault, scene, url, memory)


def _poor_key(url: str) -> str:
    async def work(database: Database) -> str:
        _, key = await KeyStore(database).create("poor")
        return key

    made: str = on_database(url, work)
    return made


def _row(fault: Fault, scene: Scene, url: str, memory: float) -> Row:
    wanted = scene.crowd.wanted
    scene.wait_until("reservations end", lambda: not rows(url, OPEN)[0][0], SETTLE_SECONDS)
    counts = judge(url, wanted)
    row = Row(
        fault.name,
        pictures=len(wanted),
        tries=sum(len(one.request_ids) for one in wanted),
        lost=sum(not one.pictures or one.wrong > 0 for one in wanted),
        charged_twice=counts["paid twice"],
        hung=scene.hung + sum(one.hung for one in wanted),
        recovered=scene.seconds_to_recover(),
        memory=memory,
        seen="; ".join(scene.notes + _refusals(scene.crowd)),
        problems=[*scene.problems, *on_database(url, audit)],
    )
    if counts["had unpaid"]:
        row.problems.append(f"{counts['had unpaid']} pictures were had unpaid")
    if row.lost or row.charged_twice or row.hung or row.recovered is None:
        row.problems.append("see the table")
    if row.memory > MEMORY:
        row.problems.append(f"memory is {row.memory:.2f} of what it was")
    return row


def _refusals(crowd: Crowd) -> list[str]:
    others = sorted(crowd.statuses.items() - {("200", crowd.statuses["200"])})
    return [f"load: {', '.join(f'{count} {status}' for status, count in others)}"] if others else []


def growth(
    happen: Callable[[], None],
    resident: Callable[[], int],
    *,
    rounds: int,
    seconds: float = SETTLE_SECONDS / 3,
) -> float:
    """Let something `happen` until memory stays, for so many rounds at most.

    Returns the share of its memory before the last round that the server has after it, as soon as
    that is in bounds, or after the `seconds` it has to come to rest.
    """
    share = math.inf
    while share > MEMORY and rounds:
        before = resident()
        happen()
        share = _share_at_rest(resident, before, seconds)
        rounds -= 1
    return share


def _share_at_rest(resident: Callable[[], int], before: int, seconds: float) -> float:
    give_up = time.monotonic() + seconds
    while True:
        share = resident() / before
        if share <= MEMORY or time.monotonic() > give_up:
            return share
        time.sleep(0.25)


def main() -> int:
    """Read the command line and try each fault in turn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("faults", nargs="*", metavar="FAULT", help="part of a name [all]")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    options = parser.parse_args()
    chosen = [
        fault
        for fault in FAULTS
        if not options.faults or any(part in fault.name for part in options.faults)
    ]
    if options.list or not chosen:
        print("\n".join(fault.name for fault in FAULTS))
        return int(not options.list)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    problems = []
    print(HEAD, flush=True)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        home = Path(name)
        model = write_tiny_model(home / "model")
        nursery = Nursery(home)
        stack.callback(nursery.close)
        for number, fault in enumerate(chosen):
            folder = home / str(number)
            folder.mkdir()
            try:
                row = tried(fault, nursery, model, folder)
            except NotHere as error:
                print(f"| {fault.name} | not tried: {error} |", flush=True)
                continue
            print(row.text, flush=True)
            problems += [f"{fault.name}: {problem}" for problem in row.problems]
        if problems:
            print(nursery.log.read_text()[-5000:], file=sys.stderr)
    print("\n" + ("\n".join(problems) or "Nothing was lost, charged twice or left hanging."))
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
