"""A number of places, given to those who wait in turn by client."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict, deque
from concurrent.futures import Future


class FairTurns:
    """Places that are taken and given back; whoever waits gets the next free one.

    A client with many requests waits behind its own: clients take turns, and of several places
    one client never holds the last. Safe from any thread.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._most = max(1, places - 1)
        self._held: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[Future[None]]] = OrderedDict()
        self._lock = threading.Lock()

    def try_take(self, client: str) -> bool:
        """Take a place if one is free."""
        with self._lock:
            if not self._free or self._held[client] >= self._most:
                return False
            self._hold(client)
            return True

    def take(self, client: str) -> Future[None]:
        """Return what is done once a place is the caller's. Cancel it to wait no longer."""
        turn: Future[None] = Future()
        with self._lock:
            self._waiting.setdefault(client, deque()).append(turn)
            self._hand_out()
        return turn

    def give_back(self, client: str) -> None:
        """Hand a client's place to the next in turn, or keep it free."""
        with self._lock:
            self._free += 1
            self._held[client] -= 1
            if not self._held[client]:
                del self._held[client]
            self._hand_out()

    @property
    def waiting(self) -> Counter[str]:
        """The number that wait, by client; clients with none are left out."""
        with self._lock:
            return +Counter(
                {
                    client: sum(not turn.cancelled() for turn in turns)
                    for client, turns in self._waiting.items()
                }
            )

    def _hold(self, client: str) -> None:
        self._free -= 1
        self._held[client] += 1

    def _hand_out(self) -> None:
        for client in list(self._waiting):
            turns = self._waiting[client]
            while turns and self._free and self._held[client] < self._most:
                turn = turns.popleft()
                if turn.set_running_or_notify_cancel():
                    self._hold(client)
                    turn.set_result(None)
                    self._waiting.move_to_end(client)
                    break
            if not turns:
                del self._waiting[client]
