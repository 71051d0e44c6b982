"""A server under load on which a fault is tried: its clients, its database, its memory."""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import requests

from scripts.robustness.kill_test import FORM, PATH, Asked
from scripts.robustness.server_lives import Lives
from tests.server.pictures import file_of, gradient

SEEDS = (1, 2, 3, 4)
PATIENCE = 45.0
"""Seconds in which every request has to be answered: three times what the server may take."""
GIVE_UP = 90.0
"""Seconds in which a client that asks again and again has to have its picture."""
CLIENTS = 4
PICTURE = file_of(gradient(320, 320))
SETTINGS = {
    "request_timeout": "15",
    "max_running_requests": "2",
    # A seed's bytes are then the same alone and in company, before a fault and after it.
    "batch_invariant": "true",
    "answer_patience": "3",
}


class NotHere(Exception):
    """What a fault needs is not on this machine; the message says what."""


@dataclass
class Wanted(Asked):
    """A picture that a client wants, of a seed, and what it met."""

    seed: int = 0
    hung: int = 0
    wrong: int = 0


@dataclass(frozen=True)
class Place:
    """What a server is given by a fault: settings, and what of it the fault takes away."""

    settings: dict[str, str]
    service: Any = None


@dataclass(frozen=True)
class Fault:
    """A fault by name. `happen` brings it about and ends it; `patch` is put into the server.

    One that is `rehearsed` happens once before memory is first looked at, and again while it still
    grows. Python's allocator keeps what the most clients at a time took, for the next ones, and
    how many that were depends on the machine: only memory that grows each time shows a leak.
    """

    name: str
    happen: Callable[[Scene], None]
    place: Callable[[Path], AbstractContextManager[Place]]
    patch: str = ""
    rehearsed: bool = False


@contextmanager
def on_sqlite(folder: Path) -> Iterator[Place]:
    """A server whose accounts are in a file."""
    yield Place({"database_url": f"sqlite:///{folder / 'accounts.db'}"})


class Crowd:
    """Clients that ask for pictures of known seeds, each until it has the right one."""

    def __init__(self, url: str, api_key: str, expected: dict[int, str]) -> None:
        self.url, self.api_key, self.expected = url, api_key, expected
        self.wanted: list[Wanted] = []
        self.right: list[tuple[float, float]] = []
        """When each right answer was asked for, and when it came."""
        self.statuses: Counter[str] = Counter()
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, clients: int = CLIENTS) -> None:
        self._threads = [
            threading.Thread(target=self._client, args=(number,)) for number in range(clients)
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Let every client have the picture that it waits for, and wait for that."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _client(self, number: int) -> None:
        session = requests.Session()
        while not self._over.is_set():
            number += 1
            self.want(session, SEEDS[number % len(SEEDS)])

    def want(self, session: requests.Session, seed: int) -> Wanted:
        """Ask for a picture until it has come or there is no hope."""
        wanted = Wanted(self.api_key, uuid.uuid4().hex, seed=seed)
        self.wanted.append(wanted)
        give_up = time.monotonic() + GIVE_UP
        while not self._ask(session, wanted) and time.monotonic() < give_up:
            time.sleep(0.1)
        return wanted

    def _ask(self, session: requests.Session, wanted: Wanted) -> bool:
        wanted.request_ids.append(uuid.uuid4().hex)
        headers = {
            "Authorization": self.api_key,
            "Idempotency-Key": str(wanted.idempotency_key),
            "X-Request-Id": wanted.request_ids[-1],
        }
        data, files = FORM | {"seed": wanted.seed}, {"init_image": ("a.png", PICTURE)}
        begun = time.monotonic()
        try:
            response = session.post(
                self.url + PATH, data, files=files, headers=headers, timeout=PATIENCE
            )
            body = response.json()
        except requests.Timeout:
            wanted.hung += 1
            self.statuses["none"] += 1
            return False
        except (requests.RequestException, ValueError):
            self.statuses["cut off"] += 1
            return False
        self.statuses[str(response.status_code)] += 1
        if body["code"] != 0:
            return False
        picture = body["data"]["image"]
        wanted.pictures.append(picture)
        wanted.replayed += "Idempotency-Replayed" in response.headers
        if picture != self.expected.setdefault(wanted.seed, picture):
            wanted.wrong += 1
        else:
            self.right.append((begun, time.monotonic()))
        return True


@dataclass
class Scene:
    """A server that runs, its clients, and what a fault notes of itself."""

    lives: Lives
    crowd: Crowd
    place: Place
    orders: Path
    """The file that tells the patch what is to go wrong."""
    api_key: str
    poor_key: str
    """A key without credits: what is asked with it is read, checked, and never made."""
    marks: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    hung: int = 0

    @property
    def server(self) -> psutil.Process:
        return psutil.Process(self.lives.pid)

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.lives.url.removeprefix("http://").partition(":")
        return host, int(port)

    def mark(self) -> None:
        """Count the time to recover from now on."""
        self.marks.append(time.monotonic())

    def forget(self) -> None:
        """Drop what a rehearsal noted; its problems stay."""
        self.marks.clear()
        self.notes.clear()

    def order(self, fault: str) -> None:
        """Have the patch do this from now on; blank: nothing."""
        self.orders.write_text(fault)

    def restart(self) -> None:
        """Start the next life, and wait for right answers from it."""
        self.lives.start()
        self.wait_for_answers()

    def wait_for_answers(self, count: int = 2) -> None:
        """Wait for right answers to what is asked from now on."""
        since, give_up = time.monotonic(), time.monotonic() + GIVE_UP
        while sum(begun >= since for begun, _ in self.crowd.right) < count:
            if time.monotonic() > give_up:
                self.problems.append("no right answer came afterwards")
                return
            time.sleep(0.02)

    def seconds_to_recover(self) -> float | None:
        """From each mark to the first right answer to what was asked later; the longest.

        None where none came.
        """
        longest = 0.0
        for mark in self.marks:
            later = [ended for begun, ended in self.crowd.right if begun >= mark]
            if not later:
                return None
            longest = max(longest, min(later) - mark)
        return longest

    def wait_until(self, said: str, true: Callable[[], bool], seconds: float = 30.0) -> None:
        """Wait for something; that it did not come is a problem."""
        give_up = time.monotonic() + seconds
        while not true():
            if time.monotonic() > give_up:
                self.problems.append(f"{said}: not within {seconds:g} s")
                return
            time.sleep(0.05)
