"""Kill the server with SIGKILL at random moments under load, and check every credit afterwards.

.venv/bin/python scripts/kill_test [--kills 50] [--database sqlite] [--database postgresql]

A real server on a tiny model of random weights; clients with and without an Idempotency-Key, on an
account with plenty of credits and on one that runs out; some clients hang up early, some when the
answer begins to come. Prints a table and exits with 1 if a credit is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
import sqlalchemy as sa

from scripts.robustness.server_lives import Lives, Nursery
from scripts.services.throwaway_postgres import throwaway_postgres
from server.accounts.api_keys import KeyStore
from server.accounts.audit import audit
from server.accounts.db import Database
from server.accounts.ledger import Ledger
from server.accounts.pricing import price
from server.accounts.tables import entries, reservations
from tests.server.pictures import file_of, gradient
from tests.tiny_model import write_tiny_model

PATH = "/api/generate/basic/imageToImage"
FORM = {"prompt": "a", "width": 320, "height": 320, "steps": 10, "image_strength": 0.9}
PRICE = price(320, 320, 10)
PLENTY, SCARCE = 10_000_000, 60 * PRICE


@dataclass
class Asked:
    """One picture that a client wants, over all its tries."""

    api_key: str
    idempotency_key: str | None
    request_ids: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    replayed: int = 0
    refused: bool = False


class Load:
    """Clients that ask without a pause while the gate is open."""

    def __init__(self, url: str, api_keys: list[str], clients: int, seed: int) -> None:
        self.url = url
        self.api_keys = api_keys
        self.gate, self.ended = threading.Event(), threading.Event()
        self.asked: list[Asked] = []
        self.picture = file_of(gradient(320, 320))
        self._running = 0
        self._lock = threading.Lock()
        self.threads = [
            threading.Thread(target=self._client, args=(random.Random(seed + i),))
            for i in range(clients)
        ]
        for thread in self.threads:
            thread.start()

    def settle_down(self) -> None:
        """Close the gate and wait until no client is under way."""
        self.gate.clear()
        while self._running:
            time.sleep(0.01)

    def end(self) -> None:
        self.ended.set()
        self.gate.set()
        for thread in self.threads:
            thread.join()

    def _client(self, chance: random.Random) -> None:
        pending: list[Asked] = []
        session = requests.Session()
        while not self.ended.is_set():
            if not self.gate.wait(0.1) or self.ended.is_set():
                continue
            with self._lock:
                self._running += 1
            try:
                if pending and chance.random() < 0.5:
                    asked = pending.pop(0)
                else:
                    asked = Asked(chance.choice(self.api_keys), None)
                    if chance.random() < 0.75:
                        asked.idempotency_key = uuid.UUID(int=chance.getrandbits(128)).hex
                    with self._lock:
                        self.asked.append(asked)
                patience = chance.uniform(0.02, 1.0) if chance.random() < 0.1 else 60.0
                hangs_up = chance.random() < 0.1
                had = self.ask(session, asked, patience, hangs_up)
                if not had and asked.idempotency_key is not None:
                    pending.append(asked)
            finally:
                with self._lock:
                    self._running -= 1

    def ask(
        self,
        session: requests.Session,
        asked: Asked,
        patience: float = 60.0,
        hangs_up: bool = False,
    ) -> bool:
        """One try; whether no other is of use. `hangs_up`: when the answer begins to come."""
        request_id = uuid.uuid4().hex
        asked.request_ids.append(request_id)
        headers = {"Authorization": asked.api_key, "X-Request-Id": request_id}
        if asked.idempotency_key is not None:
            headers["Idempotency-Key"] = asked.idempotency_key
        try:
            response = session.post(
                self.url + PATH,
                data=FORM,
                files={"init_image": ("a.png", self.picture)},
                headers=headers,
                timeout=patience,
                stream=hangs_up,
            )
            if hangs_up:
                response.close()
                return False
            body = response.json()
        except requests.RequestException:
            return False
        if body["code"] == 0:
            asked.pictures.append(body["data"]["image"])
            asked.replayed += "Idempotency-Replayed" in response.headers
            return True
        assert response.status_code in (402, 409, 503), body
        asked.refused = response.status_code == 402
        return response.status_code == 402


def on_database(url: str, work: Callable[[Database], Any]) -> Any:
    async def main() -> Any:
        database = Database(url)
        try:
            await database.migrate()
            return await work(database)
        finally:
            await database.close()

    return asyncio.run(main())


def make_keys(url: str) -> list[str]:
    async def work(database: Database) -> list[str]:
        keys = []
        for name, tenths in (("plenty", PLENTY), ("scarce", SCARCE)):
            account, key = await KeyStore(database).create(name)
            await Ledger(database).grant(account.id, tenths)
            keys.append(key)
        return keys

    made: list[str] = on_database(url, work)
    return made


def rows(url: str, query: sa.Select[Any]) -> list[Any]:
    async def work(database: Database) -> list[Any]:
        return list(await database.read(lambda connection: connection.execute(query)))

    found: list[Any] = on_database(url, work)
    return found


OPEN = sa.select(sa.func.count()).where(reservations.c.state == "open")


def killed_often(url: str, folder: Path, kills: int, clients: int, seed: int) -> dict[str, int]:
    """The counts of the table."""
    chance = random.Random(seed)
    keys = make_keys(url)
    counts = {"open at a kill": 0, "open after a restart": 0, "problems found by the audit": 0}
    nursery = Nursery(folder)
    lives = Lives(nursery, model=str(write_tiny_model(folder / "model")), database_url=url)
    lives.start()
    load = Load(lives.url, keys, clients, seed)
    try:
        for _ in range(kills):
            load.gate.set()
            time.sleep(chance.uniform(0.05, 1.5))
            lives.end()
            load.settle_down()
            counts["open at a kill"] += rows(url, OPEN)[0][0]
            lives.start()
            counts["open after a restart"] += rows(url, OPEN)[0][0]
            counts["problems found by the audit"] += len(on_database(url, audit))
        load.end()
        finish(load)
        return {"kills": kills, **judge(url, load.asked), **counts}
    finally:
        load.end()
        lives.close()
        nursery.close()


def finish(load: Load) -> None:
    """Ask again, as a client would, for every picture that has a key and was not had yet."""
    session = requests.Session()
    for asked in load.asked:
        while asked.idempotency_key and not asked.pictures and not asked.refused:
            load.ask(session, asked)


def judge(url: str, all_asked: Sequence[Asked]) -> dict[str, int]:
    columns = reservations.c
    charged: dict[str, int] = {}
    query = sa.select(columns.request_id, columns.amount).where(columns.state == "settled")
    for request_id, amount in rows(url, query):
        assert amount == PRICE
        charged[request_id] = charged.get(request_id, 0) + 1
    counts = dict.fromkeys(
        (
            "pictures asked for",
            "had and charged once",
            "of these cut off after the charge, fetched by key at no charge",
            "cut off after the charge, without a key",
            "not had, not charged",
            "refused for want of credits",
            "had unpaid",
            "paid twice",
        ),
        0,
    )
    for asked in all_asked:
        paid = sum(charged.get(request_id, 0) for request_id in asked.request_ids)
        counts["pictures asked for"] += 1
        counts["refused for want of credits"] += asked.refused and not asked.pictures
        counts["had unpaid"] += bool(asked.pictures) and paid == 0
        counts["paid twice"] += paid > 1
        counts["had and charged once"] += bool(asked.pictures) and paid == 1
        counts["of these cut off after the charge, fetched by key at no charge"] += bool(
            asked.replayed
        )
        counts["cut off after the charge, without a key"] += not asked.pictures and paid == 1
        counts["not had, not charged"] += not (asked.pictures or paid or asked.refused)
        if len(set(asked.pictures)) > 1:
            raise AssertionError("one key, two pictures")
    spent = sa.select(sa.func.coalesce(sa.func.sum(entries.c.amount), 0))
    earned = rows(url, spent.where(entries.c.target == "earned"))[0][0]
    assert earned == PRICE * sum(charged.values())
    return counts


@contextmanager
def new_database(kind: str, folder: Path) -> Iterator[str]:
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'accounts.db'}"
        return
    with throwaway_postgres(durable=True) as server:
        yield server.url


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--database", action="append", choices=["sqlite", "postgresql"])
    options = parser.parse_args()
    kinds = options.database or ["sqlite", "postgresql"]
    tables: dict[str, dict[str, int]] = {}
    for kind in kinds:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            url = stack.enter_context(new_database(kind, folder))
            tables[kind] = killed_often(url, folder, options.kills, options.clients, options.seed)
    print(f"| | {' | '.join(kinds)} |\n|---|{'---|' * len(kinds)}")
    for name in tables[kinds[0]]:
        print(f"| {name} | {' | '.join(str(tables[kind][name]) for kind in kinds)} |")
    wrong = ("had unpaid", "paid twice", "open after a restart", "problems found by the audit")
    return int(any(tables[kind][name] for kind in kinds for name in wrong))


if __name__ == "__main__":
    sys.exit(main())
