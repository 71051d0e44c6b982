"""Scores finished pictures beside the engine: a thread checks what waits, in batches.

The engine is done with a picture by then, so its steps never wait for a check.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from contextlib import nullcontext

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
THREAD = "img2img-safety"

_Waiting = tuple[Pixels, "Future[float]"]


class SafetyCheck:
    """Scores pictures for any number of callers.

    Its thread is there while pictures wait, so at the end of the process one that is there hangs.
    """

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
        device = model.mean.device
        # On CUDA a stream of its own: on the engine's, a step would wait for a check.
        on_cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if on_cuda else None  # type: ignore[no-untyped-call]
        self._waiting: deque[_Waiting] = deque()
        self._running = False
        self._lock = threading.Lock()  # of the two before

    def submit(self, picture: Pixels) -> Future[float]:
        """The score of an (H, W, 3) uint8 picture, to come: see `SafetyModel.scores`.

        Raises RuntimeError where the system has no thread for it.
        """
        future: Future[float] = Future()
        with self._lock:
            if not self._running:
                threading.Thread(target=self._run, name=THREAD, daemon=True).start()
                self._running = True
            self._waiting.append((picture, future))
        return future

    def score(self, picture: Pixels) -> float:
        """The score; blocks. Raises what the model and `submit` do, and TimeoutError where it
        hangs."""
        return self.submit(picture).result(self._score_seconds)

    @property
    def obstacle(self) -> str | None:
        """Say that it hangs, or None."""
        return self._watch.hang

    @property
    def alive(self) -> bool:
        return not self._watch.lost

    def _run(self) -> None:
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            while batch := self._next():
                self._score(batch)

    def _next(self) -> list[_Waiting]:
        """Take what waits, as far as it is scored at once. Where nothing does the thread ends."""
        with self._lock:
            batch = [self._waiting.popleft() for _ in range(min(MAX_BATCH, len(self._waiting)))]
            self._running = bool(batch)
        return batch

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
