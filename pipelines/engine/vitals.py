"""Whether an engine lives, gets on and takes requests: its thread, its watches, its flags."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pipelines.engine.watch import Patience, Watch
from pipelines.errors import EngineDead, EngineDraining, EngineStalled


class Vitals:
    """The engine's threads set it, anyone reads it."""

    def __init__(self, patience: Patience) -> None:
        self.unit = Watch("the engine's unit of work", patience)
        self.preparation = Watch("the preparation of a request", patience)
        self.thread: threading.Thread | None = None
        self.warm = threading.Event()
        self.draining = threading.Event()
        self.died = False

    @property
    def ready(self) -> bool:
        """Warm, alive, taking requests and getting on with them."""
        taking = self.warm.is_set() and self.alive and not self.draining.is_set()
        return taking and self.obstacle is None

    @property
    def alive(self) -> bool:
        """Return whether its thread runs, and is not in something that will never end."""
        running = not self.died and self.thread is not None and self.thread.is_alive()
        return running and not (self.unit.lost or self.preparation.lost)

    @property
    def obstacle(self) -> str | None:
        """Say what hangs, or None. It may come back by itself, and then this is None again."""
        return self.unit.hang or self.preparation.hang

    def check(self, backlog_seconds: Callable[[], float]) -> None:
        """Raise EngineDraining, EngineDead or EngineStalled where it takes no requests."""
        if self.draining.is_set():
            raise EngineDraining("the server is shutting down", retry_after=5.0)
        if not self.alive:
            raise EngineDead("the engine is not running", retry_after=30.0)
        if (obstacle := self.obstacle) is not None:
            raise EngineStalled(obstacle, retry_after=max(5.0, backlog_seconds()))
