"""The batches that run now, by who asked: for progress and interruption outside their request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from server.img2img.service import Batch


class RunningBatches:
    """Batches by the identity of their callers. Used on the event loop alone."""

    def __init__(self) -> None:
        self._batches: dict[str, list[Batch]] = {}

    @contextmanager
    def hold(self, identity: str, batch: Batch) -> Iterator[None]:
        """List the batch while the block runs."""
        mine = self._batches.setdefault(identity, [])
        mine.append(batch)
        try:
            yield
        finally:
            mine.remove(batch)
            if not mine:
                del self._batches[identity]

    def of(self, identity: str) -> list[Batch]:
        """Return the caller's batches, oldest first."""
        return list(self._batches.get(identity, ()))
