"""The random numbers of a request."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from pipelines.request import GenerationRequest, MaskedContent

_PARALLEL = 0.9995
"""The mean cosine above which two draws are taken to be the same, and slerp for a straight line."""


@dataclass(frozen=True, eq=False)
class RequestNoise:
    """Every random number of a request, float32 on the CPU, each draw (4, h, w).

    Drawn from the request's own generator in the order in which diffusers draws: the posterior
    sample, the start noise, then one draw a stochastic step. So a seed gives the same picture
    alone or in a crowd, and on any device. Last comes the ``content`` that a masked area starts
    from, where it is noise.
    """

    posterior: torch.Tensor
    start: torch.Tensor
    steps: torch.Tensor  # (draws, 4, h, w)
    content: torch.Tensor | None = None

    @classmethod
    def draw(
        cls, seed: int, shape: tuple[int, int, int], draws: int, content: bool = False
    ) -> RequestNoise:
        """``shape`` is that of the latents, (4, h, w)."""
        generator = torch.Generator("cpu").manual_seed(seed)

        def one() -> torch.Tensor:
            return torch.randn((1, *shape), generator=generator, dtype=torch.float32)[0]

        posterior, start = one(), one()
        steps = [one() for _ in range(draws)]
        stacked = torch.stack(steps) if steps else torch.empty(0, *shape)
        return cls(posterior, start, stacked, one() if content else None)

    @classmethod
    def of(
        cls, request: GenerationRequest, shape: tuple[int, int, int], draws: int
    ) -> RequestNoise:
        """Draw what a request needs.

        A second seed varies the posterior sample and the start noise, those of the steps remain,
        as in A1111: at strength 1 a sampler that draws none gives the second seed's picture.
        """
        content = request.mask is not None and request.masked_content is MaskedContent.LATENT_NOISE
        noise = cls.draw(request.seed, shape, draws, content)
        strength = request.variation_strength
        if request.variation_seed is None or strength <= 0.0:
            return noise
        other = cls.draw(request.variation_seed, shape, 0)
        return replace(
            noise,
            posterior=slerp(noise.posterior, other.posterior, strength),
            start=slerp(noise.start, other.start, strength),
        )

    @property
    def nbytes(self) -> int:
        draws = (self.posterior, self.start, self.steps, self.content)
        return sum(draw.nbytes for draw in draws if draw is not None)

    def for_device(self, device: torch.device) -> RequestNoise:
        """The same in memory that ``device`` reads without the host waiting: pinned for CUDA."""
        if device.type != "cuda":
            return self
        posterior, start, steps = (x.pin_memory() for x in (self.posterior, self.start, self.steps))
        content = None if self.content is None else self.content.pin_memory()
        return RequestNoise(posterior, start, steps, content)


def slerp(low: torch.Tensor, high: torch.Tensor, share: float) -> torch.Tensor:
    """Return the draw that is ``share`` of the way from ``low`` to ``high``, (4, h, w) each.

    Spherical, so that it stays as large as noise is, and column by column as A1111's
    (``modules/rng.py``): its angle is taken along the height. Exact at 0 and 1.
    """
    if share <= 0.0 or share >= 1.0:
        return low if share <= 0.0 else high
    a, b = low.double(), high.double()
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=1)[:, None]  # (4, 1, w)
    if cosine.mean() > _PARALLEL:
        return torch.lerp(low, high, share)
    angle = torch.acos(cosine.clamp(-1.0, 1.0))
    sine = torch.sin(angle)
    way = torch.sin((1.0 - share) * angle) / sine * a + torch.sin(share * angle) / sine * b
    return way.float()
