"""Scores finished pictures beside the engine: a thread of its own checks what waits, in batches.

The engine is done with a picture by then, so its steps never wait for a check.
"""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext

import torch

from models.auxiliary.safety_checker import SafetyModel
from pipelines.engine.watch import Patience, Watch
from pipelines.request import Pixels

MAX_BATCH = 8
SECONDS_A_PICTURE = 1.0
"""Expected of CLIP ViT-L/14 on a CPU core; a card takes milliseconds."""
SCORE_SECONDS = 120.0
"""`SafetyCheck.score` waits no longer: a check that hangs must not keep its callers' threads. A
full batch before its own and its own are said to hang at 40 s each."""

_Waiting = tuple[Pixels, "Future[float]"]


class SafetyCheck:
    """Scores pictures for any number of callers. Its thread is a daemon and ends with `close`."""

    def __init__(
        self,
        model: SafetyModel,
        patience: Patience | None = None,
        score_seconds: float = SCORE_SECONDS,
    ) -> None:
        self.model = model
        self._watch = Watch("the safety check", patience)
        self._score_seconds = score_seconds
        self.batches = 0
        self._inbox: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="img2img-safety", daemon=True)
        self._thread.start()

    def submit(self, picture: Pixels) -> Future[float]:
        """The score of an (H, W, 3) uint8 picture, to come: see `SafetyModel.scores`."""
        future: Future[float] = Future()
        self._inbox.put((picture, future))
        return future

    def score(self, picture: Pixels) -> float:
        """The score; blocks. Raises what the model raises, and TimeoutError where it hangs."""
        return self.submit(picture).result(self._score_seconds)

    @property
    def obstacle(self) -> str | None:
        """Say that it hangs, or None."""
        return self._watch.hang

    @property
    def alive(self) -> bool:
        return not self._watch.lost

    def close(self) -> None:
        """Score what waits already, and end."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        with self._stream():
            while (first := self._inbox.get()) is not None:
                batch, last = [first], False
                while len(batch) < MAX_BATCH and not self._inbox.empty():
                    another = self._inbox.get()
                    if another is None:
                        last = True
                        break
                    batch.append(another)
                self._score(batch)
                if last:
                    return

    def _stream(self) -> AbstractContextManager[object]:
        """On CUDA a stream of its own: on the engine's, a step would wait for a check."""
        device = self.model.mean.device
        if device.type != "cuda":
            return nullcontext()
        return torch.cuda.stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]

    def _score(self, batch: list[_Waiting]) -> None:
        self.batches += 1
        try:
            with self._watch.unit(len(batch) * SECONDS_A_PICTURE):
                scores = self.model.scores([picture for picture, _ in batch])
        except Exception as error:
            for _, future in batch:
                future.set_exception(error)
            return
        for (_, future), score in zip(batch, scores, strict=True):
            future.set_result(score)
