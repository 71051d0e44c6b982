"""A number of places, given to those who wait in turn by client."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from concurrent.futures import Future


class FairTurns:
    """Places that are taken and given back; whoever waits gets the next free one.

    A client with many requests waits behind its own: clients take turns. Safe from any thread.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: OrderedDict[str, deque[Future[None]]] = OrderedDict()
        self._lock = threading.Lock()

    def try_take(self) -> bool:
        """Take a place if one is free; nobody waits then."""
        with self._lock:
            if self._free:
                self._free -= 1
                return True
            return False

    def take(self, client: str) -> Future[None]:
        """Return what is done once a place is the caller's. Cancel it to wait no longer."""
        turn: Future[None] = Future()
        with self._lock:
            if self._free:
                self._free -= 1
                turn.set_result(None)
            else:
                self._waiting.setdefault(client, deque()).append(turn)
        return turn

    def give_back(self) -> None:
        """Hand a place to the next client in turn, or keep it free."""
        with self._lock:
            while self._waiting:
                client, turns = self._waiting.popitem(last=False)
                turn = turns.popleft()
                if turns:
                    self._waiting[client] = turns  # at the end of the round
                if turn.set_running_or_notify_cancel():
                    turn.set_result(None)
                    return
            self._free += 1

    @property
    def waiting(self) -> int:
        """How many wait."""
        with self._lock:
            return sum(not turn.cancelled() for turns in self._waiting.values() for turn in turns)
