"""The random numbers of a request."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class RequestNoise:
    """Every random number of a request, float32 on the CPU, each draw (4, h, w).

    Drawn from the request's own generator in the order in which diffusers draws: the posterior
    sample, the start noise, then one draw a stochastic step. So a seed gives the same picture
    alone or in a crowd, and on any device.
    """

    posterior: torch.Tensor
    start: torch.Tensor
    steps: torch.Tensor  # (draws, 4, h, w)

    @classmethod
    def draw(cls, seed: int, shape: tuple[int, int, int], draws: int) -> RequestNoise:
        """``shape`` is that of the latents, (4, h, w)."""
        generator = torch.Generator("cpu").manual_seed(seed)

        def one() -> torch.Tensor:
            return torch.randn((1, *shape), generator=generator, dtype=torch.float32)[0]

        posterior, start = one(), one()
        steps = [one() for _ in range(draws)]
        return cls(posterior, start, torch.stack(steps) if steps else torch.empty(0, *shape))

    def for_device(self, device: torch.device) -> RequestNoise:
        """The same in memory that ``device`` reads without the host waiting: pinned for CUDA."""
        if device.type != "cuda":
            return self
        return RequestNoise(*(x.pin_memory() for x in (self.posterior, self.start, self.steps)))
