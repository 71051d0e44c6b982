"""The loop that every stage of training shares: schedule, averages, checkpoints, a table of losses.

A run is a folder. It holds ``checkpoint.pt`` (weights, optimiser, averages, step, and the exported
weights that it started from), ``log.csv``, ``report.csv`` and sample sheets; a run that is started
again goes on from its checkpoint, on another device too. It may be ended at any moment: by a signal
it saves first, by a lost machine it loses about SAVE_MINUTES.
"""

from __future__ import annotations

import csv
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.device import choose_dtype

SAVE_MINUTES = 5.0
Step = Callable[[int], dict[str, torch.Tensor]]
"""Gives the losses of a step; ``loss`` is what is minimised."""


@dataclass(frozen=True)
class Plan:
    """How long and how fast: ``steps`` in all, of which ``minutes`` may end a stretch earlier; or,
    without steps, a stretch of ``minutes``."""

    steps: int | None
    learning_rate: float
    warm_up: int = 100
    minutes: float = 1e9
    ema: float = 0.0
    weight_decay: float = 1e-4
    log_every: int = 100

    def rate(self, step: int, minutes: float = 0.0) -> float:
        """Linear warm-up, then linear to zero at the last step, or at the end of the minutes."""
        done = minutes / self.minutes if self.steps is None else step / self.steps
        return self.learning_rate * min(1.0, (step + 1) / self.warm_up) * max(1 - done, 0.0)


def compute_dtype(device: torch.device) -> torch.dtype:
    """Return what to compute in: bfloat16 where `auto` finds float32 slower. float16, which it
    takes on a card, has too short a range for gradients."""
    return torch.float32 if choose_dtype("auto", device) is torch.float32 else torch.bfloat16


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """Read a run's checkpoint into the host's memory: a card may have written it."""
    path = folder / "checkpoint.pt"
    saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return saved


def save_checkpoint(folder: Path, state: Mapping[str, Any]) -> None:
    """Write a run's checkpoint; an interrupted write leaves the last one, or none."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "checkpoint.tmp")
    (folder / "checkpoint.tmp").rename(folder / "checkpoint.pt")


class Run:
    """One stage of training in a folder."""

    def __init__(self, folder: Path, model: torch.nn.Module, plan: Plan) -> None:
        self.folder, self.model, self.plan = folder, model, plan
        folder.mkdir(parents=True, exist_ok=True)
        self.optimiser = torch.optim.AdamW(
            model.parameters(),
            lr=plan.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=plan.weight_decay,
            fused=True,
        )
        self.step = 0
        self.averages: dict[str, torch.Tensor] = {}
        self._start: dict[str, torch.Tensor] = {}
        if plan.ema:
            self.averages = {k: v.detach().clone() for k, v in self._floats()}
        if (folder / "checkpoint.pt").exists():
            self._resume()

    def _floats(self) -> Iterable[tuple[str, torch.Tensor]]:
        return ((k, v) for k, v in self.model.state_dict().items() if v.is_floating_point())

    def _resume(self) -> None:
        saved = load_checkpoint(self.folder)
        self.model.load_state_dict(saved["model"])
        if saved["optimiser"] is not None:
            self.optimiser.load_state_dict(saved["optimiser"])
            for group in self.optimiser.param_groups:
                group["fused"] = True  # what was saved may not have been
        self.step = saved["step"]
        # What was unpacked from an exported folder has no optimiser: a start worth keeping.
        unpacked = saved["optimiser"] is None
        self._start = dict(saved["model"]) if unpacked else saved.get("start", {})
        if self.averages:
            kept = saved["averages"] or dict(self._floats())
            self.averages = {k: v.detach().clone().to(self._device) for k, v in kept.items()}
        print(f"{self.folder.name}: goes on from step {self.step}", flush=True)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def save(self) -> None:
        """Write the checkpoint."""
        state = {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "averages": self.averages,
            "start": self._start,
        }
        save_checkpoint(self.folder, state)

    def averaged_weights(self) -> dict[str, torch.Tensor]:
        """The averaged weights, or the weights themselves in a run without averages."""
        return {**self.model.state_dict(), **self.averages}

    def train(self, step: Step, report: Callable[[int], dict[str, float]] | None = None) -> None:
        """Run to the plan's end or a signal; ``report`` measures at saves and may draw sheets.

        SIGINT and SIGTERM end it after the step that is being computed.
        """
        started = saved = window = time.monotonic()
        plan, first = self.plan, self.step
        counted = 0  # steps since the last row
        sums: dict[str, torch.Tensor] = {}
        with _signals() as ended:
            while not ended and (plan.steps is None or self.step < plan.steps):
                minutes = (time.monotonic() - started) / 60
                if minutes >= plan.minutes:
                    break
                # Only the warm-up starts anew with a stretch that has no steps to go by.
                at = self.step - (first if plan.steps is None else 0)
                for group in self.optimiser.param_groups:
                    group["lr"] = plan.rate(at, minutes)
                for name, value in self._learn(step(self.step)).items():
                    sums[name] = sums.get(name, 0.0) + value
                counted += 1
                if self.step % plan.log_every == 0:
                    row = {name: float(total) / counted for name, total in sums.items()}
                    seconds = (time.monotonic() - window) / counted
                    self._log("log.csv", {"seconds": seconds, **row})
                    if time.monotonic() - saved > SAVE_MINUTES * 60:
                        self.save()
                        if report is not None and (measured := report(self.step)):
                            self._log("report.csv", measured)
                        saved = time.monotonic()
                    sums, counted, window = {}, 0, time.monotonic()
            self.save()

    def _learn(self, losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Take one step against ``loss``. Never waits for the device."""
        self.optimiser.zero_grad(set_to_none=True)
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self._average()
        self.step += 1
        return {name: value.detach() for name, value in losses.items()}

    def _average(self) -> None:
        if not self.averages:
            return
        # A short memory at the start, so that the first averages are not the random weights.
        decay = min(self.plan.ema, (1 + self.step) / (10 + self.step))
        values = [value.detach() for _, value in self._floats()]
        torch._foreach_lerp_([self.averages[k] for k, _ in self._floats()], values, 1 - decay)

    def _log(self, name: str, measured: dict[str, float]) -> None:
        row = {"step": self.step, **measured}
        print(f"{self.folder.name} " + " ".join(f"{k} {v:.4g}" for k, v in row.items()), flush=True)
        path = self.folder / name
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if path.stat().st_size == 0:
                writer.writerow(row)
            writer.writerow(row.values())


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Yield a list that fills with the signals that ask for an end."""
    seen: list[int] = []
    asking = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(one, lambda number, _: seen.append(number)) for one in asking]
    try:
        yield seen
    finally:
        for one, handler in zip(asking, before, strict=True):
            signal.signal(one, handler)
