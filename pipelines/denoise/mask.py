"""Masks in the step: what lies outside one is led back to the picture that came in.

Between the U-Net and the sampler, as CLIP guidance is, and after it. The predicted picture x0 of
a masked request is blended with the latents of its own picture,

    x0' = mask * x0 + (1 - mask) * kept

and the model output that predicts x0' is what the sampler's coefficients see. So it is right for
any sampler: outside the mask each line leads to ``kept`` exactly, with whatever noise the sampler
adds, and earlier outputs that a multistep sampler saved, or the first of two evaluations, have
been blended themselves. To blend the latents after a step would leave those as they were and, where
a mask is soft, would keep a larger share at each step. A1111 blends x0 too (its
``modules/sd_samplers_cfg_denoiser.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from models.device import upload
from pipelines.denoise.batch import Evaluation


class KeptAreas:
    """The masks of a pool's requests and the latents of their pictures, by place.

    ``mask`` is (places, 1, h, w), 1 where latents are made anew; ``latents`` (places, 4, h, w).
    Both float32. Places of requests without a mask hold anything.
    """

    def __init__(self, places: int, latent: Sequence[int], device: torch.device) -> None:
        self.mask = torch.zeros(places, 1, *latent[1:], device=device)
        self.latents = torch.zeros(places, *latent, device=device)

    def write(self, place: int, mask: torch.Tensor, latents: torch.Tensor) -> None:
        """Set what the request at ``place`` keeps."""
        self.mask[place] = mask
        self.latents[place] = latents


def keep_outside(
    areas: KeptAreas | None,
    state: torch.Tensor,
    evaluations: Sequence[Evaluation],
    outputs: torch.Tensor,
) -> None:
    """Change the model outputs, (B, 4, h, w), of the masked requests among ``evaluations``.

    ``state`` is the pool's. Rows without a mask are neither read nor written.
    """
    masked = [b for b, evaluation in enumerate(evaluations) if evaluation.masked]
    if not masked:
        return
    assert areas is not None
    places = [evaluations[b].position for b in masked]
    # kept = on_latents * x + on_output * output, solved for the output
    x0 = np.array([evaluations[b].coefficients.x0 for b in masked])
    factors = np.stack([1.0 / x0[:, 1], -x0[:, 0] / x0[:, 1]]).astype(np.float32)
    rows, positions = upload(np.array([masked, places], dtype=np.int64), outputs.device)
    on_kept, on_latents = upload(factors, outputs.device)[..., None, None, None]
    kept = areas.latents.index_select(0, positions).mul_(on_kept)
    kept.addcmul_(state[:, 0].index_select(0, positions), on_latents)
    # lerp is exact at both ends: a mask of ones changes no bit.
    mask = areas.mask.index_select(0, positions)
    outputs.index_copy_(0, rows, kept.lerp_(outputs.index_select(0, rows), mask))
