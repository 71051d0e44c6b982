"""The loop that every stage of training shares: schedule, averages, checkpoints, a table of losses.

A run is a folder. It holds ``checkpoint.pt`` (weights, optimiser, averages, step), ``log.csv`` and
sample sheets; a run that is started again goes on from its checkpoint.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

Step = Callable[[int], dict[str, torch.Tensor]]
"""Gives the losses of a step; ``loss`` is what is minimised."""


@dataclass(frozen=True)
class Plan:
    """How long and how fast. ``steps`` in all; ``minutes`` ends this stretch earlier."""

    steps: int
    learning_rate: float
    warm_up: int = 100
    minutes: float = 1e9
    ema: float = 0.0
    weight_decay: float = 1e-4
    log_every: int = 100
    save_every: int = 250

    def rate(self, step: int) -> float:
        """Linear warm-up, then linear to zero at the last step."""
        return self.learning_rate * min(1.0, (step + 1) / self.warm_up) * (1 - step / self.steps)


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
        if plan.ema:
            self.averages = {k: v.detach().clone() for k, v in self._floats()}
        if (folder / "checkpoint.pt").exists():
            self._resume()

    def _floats(self) -> Iterable[tuple[str, torch.Tensor]]:
        return ((k, v) for k, v in self.model.state_dict().items() if v.is_floating_point())

    def _resume(self) -> None:
        saved = torch.load(self.folder / "checkpoint.pt", weights_only=True)
        self.model.load_state_dict(saved["model"])
        if saved["optimiser"] is not None:
            self.optimiser.load_state_dict(saved["optimiser"])
            for group in self.optimiser.param_groups:
                group["fused"] = True  # what was saved may not have been
        self.step = saved["step"]
        if self.averages:
            kept = saved["averages"] or dict(self._floats())
            self.averages = {k: v.detach().clone().to(self._device) for k, v in kept.items()}
        print(f"{self.folder.name}: goes on from step {self.step}", flush=True)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def save(self) -> None:
        """Write the checkpoint; an interrupted write leaves the last one."""
        state = {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "averages": self.averages,
        }
        torch.save(state, self.folder / "checkpoint.tmp")
        (self.folder / "checkpoint.tmp").rename(self.folder / "checkpoint.pt")

    def averaged_weights(self) -> dict[str, torch.Tensor]:
        """The averaged weights, or the weights themselves in a run without averages."""
        return {**self.model.state_dict(), **self.averages}

    def train(self, step: Step, report: Callable[[int], dict[str, float]] | None = None) -> None:
        """Run to the plan's end; ``report`` measures at every save and may draw sheets."""
        started, window, plan = time.monotonic(), time.monotonic(), self.plan
        sums: dict[str, float] = {}
        while self.step < plan.steps and time.monotonic() - started < plan.minutes * 60:
            for group in self.optimiser.param_groups:
                group["lr"] = plan.rate(self.step)
            losses = step(self.step)
            self.optimiser.zero_grad(set_to_none=True)
            losses["loss"].backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimiser.step()
            self._average()
            self.step += 1
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
            if self.step % plan.log_every == 0:
                seconds = (time.monotonic() - window) / plan.log_every
                row = {name: total / plan.log_every for name, total in sums.items()}
                sums, window = {}, time.monotonic()
                saves = self.step % plan.save_every == 0
                if saves:
                    self.save()
                    if report is not None:
                        row |= report(self.step)
                self._log({"step": self.step, "seconds": seconds, **row})
        self.save()

    def _average(self) -> None:
        if not self.averages:
            return
        # A short memory at the start, so that the first averages are not the random weights.
        decay = min(self.plan.ema, (1 + self.step) / (10 + self.step))
        for name, value in self._floats():
            self.averages[name].lerp_(value.detach(), 1 - decay)

    def _log(self, row: dict[str, float]) -> None:
        print(f"{self.folder.name} " + " ".join(f"{k} {v:.4g}" for k, v in row.items()), flush=True)
        path = self.folder / "log.csv"
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if path.stat().st_size == 0:
                writer.writerow(row)
            writer.writerow(row.values())
