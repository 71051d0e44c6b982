"""CLIP guidance: the picture is steered towards the prompt by CLIP's own judgement.

Between the U-Net and the sampler a guided request's model output is corrected. The loss is the
spherical distance of the prompt's CLIP text embedding to the CLIP image embeddings of cutouts of
the predicted picture x0 (the loss of the field's CLIP-guided diffusion since 2021):

    loss = mean over cutouts of 2 * arcsin(|text - image| / 2)^2

Its gradient g with respect to x0 (SLOWEST: with respect to the latents, through the U-Net) gives

    x0' = x0 - strength * sigma / sqrt(sigma^2 + 1) * g / rms(g)

and the model output that predicts x0' is what the sampler's row sees. sigma / sqrt(sigma^2 + 1) is
the standard deviation that x0 still has, given the latents, if pictures were unit Gaussians: the
push is a share of what is undecided, so it fades by itself, and one strength suits any model,
size and sampler. Scaling g to unit RMS makes it independent of the loss's scale, in half precision
as well.

Where only every second step computes a gradient, the step between is pushed along the last one: a
push at every other step alone is half undone by samplers that go on from the step before (on
K_DPMPP_2M a stronger one even led away from the prompt).

Guidance ends for a request when the loss of the whole picture no longer changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from models.bundle import ModelBundle
from models.clip import ClipModel
from models.padding import circular_padding
from pipelines.cache import ByteCache
from pipelines.prompt.weights import without_weights
from pipelines.request import ClipGuidancePreset, GenerationRequest, Sampler
from pipelines.samplers.programs import StepCoefficients
from pipelines.vae.preview import LatentToRgb

FLAT_WINDOW = 5
"""Guided evaluations over which the loss must be flat for guidance to end."""
FLAT = 0.005
"""How much the loss may still change over the window, as a share of itself, and be flat."""
SMALLEST_CUTOUT = 0.4
"""The side of the smallest cutout, in shares of the picture's shorter side."""

_TWO_STAGE = frozenset(
    {
        Sampler.K_HEUN,
        Sampler.K_DPM_2,
        Sampler.K_DPM_2_ANCESTRAL,
        Sampler.K_DPMPP_2S_ANCESTRAL,
        Sampler.K_DPMPP_SDE,
    }
)
_CUTOUT_STREAM = 0xC117
"""Separates the cutouts' random numbers from every other use of a request's seed."""
_LOSS_SCALE = 1024.0
"""Keeps small gradients from vanishing in float16; g is scaled to unit RMS afterwards."""


@dataclass(frozen=True)
class Preset:
    """The parameters of one of the contract's presets.

    ``decoded``: CLIP sees the picture that the VAE decodes; else a linear map of the latents, a
    pixel a latent. ``cutouts``: how many, the whole picture being the first. ``every``: one step
    in so many computes a gradient. ``through_unet``: the gradient goes through the U-Net as well.
    """

    decoded: bool
    cutouts: int
    every: int
    strength: float
    through_unet: bool = False


PRESETS: dict[ClipGuidancePreset, Preset] = {
    ClipGuidancePreset.FAST_BLUE: Preset(False, 4, 2, 0.05),
    ClipGuidancePreset.FAST_GREEN: Preset(False, 4, 2, 0.08),
    ClipGuidancePreset.SIMPLE: Preset(False, 4, 1, 0.08),
    ClipGuidancePreset.SLOW: Preset(True, 4, 1, 0.07),
    ClipGuidancePreset.SLOWER: Preset(True, 8, 1, 0.1),
    ClipGuidancePreset.SLOWEST: Preset(True, 8, 1, 0.09, through_unet=True),
}
"""Every preset but NONE, from the cheapest to the dearest."""


@dataclass(eq=False)
class GuidanceRun:
    """The state of one request's guidance.

    Only `commit` changes it, so a step that raised can be run again.
    """

    preset: Preset
    text: str
    seed: int
    stages: int = 1
    cfg_scale: float = 7.0
    evaluation: int = 0
    losses: list[float] = field(default_factory=list)
    direction: torch.Tensor | None = None

    @classmethod
    def of(cls, request: GenerationRequest) -> GuidanceRun | None:
        """The run of a request, None where it asks for no guidance."""
        preset = PRESETS.get(request.clip_guidance)
        if preset is None:
            return None
        return cls(
            preset=preset,
            text=without_weights(request.prompt),
            seed=request.seed,
            stages=2 if request.sampler in _TWO_STAGE else 1,
            cfg_scale=request.cfg_scale,
        )

    @property
    def ended(self) -> bool:
        """Return whether the loss has flattened.

        A loss that rises is not flat: while a picture forms, it rises for reasons of its own.
        """
        window = self.losses[-FLAT_WINDOW:]
        return len(window) == FLAT_WINDOW and max(window) - min(window) <= FLAT * max(window)

    @property
    def due(self) -> bool:
        """Return whether the next evaluation computes a gradient."""
        step = self.evaluation // self.stages
        return step % self.preset.every == 0 and not self.ended

    def boxes(self, height: int, width: int) -> list[tuple[int, int, int]]:
        """(top, left, side) of the next evaluation's square cutouts, the whole picture left out.

        They depend on the seed and the evaluation alone, so that they are the same in a step that
        is run again, and take nothing from the noise's generator.
        """
        rng = np.random.default_rng((_CUTOUT_STREAM, self.seed, self.evaluation))
        shorter = min(height, width)
        smallest = max(1, round(SMALLEST_CUTOUT * shorter))
        found = []
        for _ in range(self.preset.cutouts - 1):
            side = int(rng.integers(smallest, shorter, endpoint=True))
            top = int(rng.integers(0, height - side, endpoint=True))
            left = int(rng.integers(0, width - side, endpoint=True))
            found.append((top, left, side))
        return found

    def pushed(
        self, row: StepCoefficients, direction: torch.Tensor, loss: float | None
    ) -> Correction:
        """The correction that pushes x0 against ``direction``, (4, h, w) of unit RMS."""
        undecided = row.sigma / math.sqrt(row.sigma**2 + 1)
        push = -self.preset.strength * undecided * direction
        return Correction(push / row.x0[1], direction, loss)

    def repeated(self, row: StepCoefficients) -> Correction | None:
        """The last push once more, for an evaluation that is not due; None where guidance is over
        or there was none."""
        if self.ended or self.direction is None:
            return None
        return self.pushed(row, self.direction, None)

    def commit(self, made: Correction | None) -> None:
        """Note that an evaluation was made, and how it was corrected."""
        self.evaluation += 1
        if made is None:
            return
        self.direction = made.direction
        if made.loss is not None:
            self.losses.append(made.loss)


@dataclass(frozen=True, eq=False)
class Correction:
    """The tensor added to a request's model output, (4, h, w) float32; the gradient, scaled to unit
    RMS, that it follows; and the whole picture's loss before it, if that was computed."""

    output: torch.Tensor
    direction: torch.Tensor
    loss: float | None


def spherical_distance(pictures: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Squared half angle times two of unit vectors (N, D) to one (D,): (N,), 0 where they agree."""
    # Below 1, because arcsin's slope at 1 has no end.
    half_chord = ((pictures - text).norm(dim=-1) / 2).clamp(max=1 - 1e-6)
    distance: torch.Tensor = half_chord.arcsin().square() * 2
    return distance


class ClipGuide:
    """Computes corrections with a bundle's CLIP model. The engine's thread owns it."""

    def __init__(self, bundle: ModelBundle, clip: ClipModel) -> None:
        self._bundle = bundle
        self._clip = clip
        self._to_rgb: LatentToRgb | None = None
        self._texts: ByteCache[str, torch.Tensor] = ByteCache(2**20, lambda text: text.nbytes)

    def correction(
        self,
        run: GuidanceRun,
        row: StepCoefficients,
        latents: torch.Tensor,
        output: torch.Tensor,
        text: torch.Tensor,
        tile: bool,
    ) -> Correction | None:
        """The correction of one request's model output in a step; None where it is not finite.

        ``latents`` is slot 0 and ``output`` the guided model output, (4, h, w) float32 both;
        ``text`` (2, T, D) the request's text states, read by SLOWEST alone.
        """
        with _gradients():
            latents, output = latents.clone(), output.clone()
            a, b = row.x0
            x0 = (a * latents + b * output).requires_grad_()
            losses = self.losses(run, x0, tile)
            (gradient,) = torch.autograd.grad(losses.mean() * _LOSS_SCALE, x0)
            if run.preset.through_unet:
                gradient = self._through_unet(run, row, latents, gradient, text.clone(), tile)
        rms = gradient.square().mean().sqrt()
        if not torch.isfinite(rms) or rms == 0:
            return None
        return run.pushed(row, gradient / rms, losses[0].item())

    def losses(self, run: GuidanceRun, x0: torch.Tensor, tile: bool) -> torch.Tensor:
        """The distances of the whole picture and of each cutout, (cutouts,) float32.

        ``x0`` (4, h, w) are predicted latents.
        """
        picture = self._decode(x0, tile) if run.preset.decoded else self._linear(x0)
        height, width = picture.shape[1:]
        cuts = [picture] + [
            picture[:, top : top + side, left : left + side]
            for top, left, side in run.boxes(height, width)
        ]
        resized = torch.cat([self._clip.resized(cut[None]) for cut in cuts])
        return spherical_distance(self._clip.embed_images(resized), self._text(run.text))

    def _text(self, text: str) -> torch.Tensor:
        with torch.no_grad():
            return self._texts.get_or_make(text, lambda: self._clip.embed_text(text))

    def _linear(self, x0: torch.Tensor) -> torch.Tensor:
        """(4, h, w) latents to a (3, h, w) picture in 0..1."""
        if self._to_rgb is None:
            with torch.no_grad():
                self._to_rgb = LatentToRgb.fit(self._bundle)
        weight = self._to_rgb.weight.to(x0.device)
        bias = self._to_rgb.bias.to(x0.device)
        return torch.einsum("oc,chw->ohw", weight, x0) + bias[:, None, None]

    def _decode(self, x0: torch.Tensor, tile: bool) -> torch.Tensor:
        """(4, h, w) latents to a (3, 8h, 8w) picture in 0..1, float32."""
        vae = self._bundle.vae
        scaled = (x0[None] / self._bundle.scaling_factor).to(self._bundle.dtype)
        with circular_padding(tile, vae):
            decoded: torch.Tensor = vae.decode(scaled, return_dict=False)[0][0]
        return decoded.float() / 2 + 0.5

    def _through_unet(
        self,
        run: GuidanceRun,
        row: StepCoefficients,
        latents: torch.Tensor,
        gradient: torch.Tensor,
        text: torch.Tensor,
        tile: bool,
    ) -> torch.Tensor:
        """``gradient`` with respect to x0, carried to the latents: J^T g, (4, h, w) float32.

        J is that of the one prediction the prompt makes, without classifier-free guidance. It is
        then a posterior covariance over sigma^2 (Tweedie, second order): symmetric, no negative
        eigenvalue, so what comes out is never against g. That of the guided prediction is
        cfg * J_cond - (cfg - 1) * J_uncond, which has no such property and at cfg 7 did mislead.
        """
        unet = self._bundle.unet
        a, b = row.x0
        wanted = latents.requires_grad_()
        side = text[:1] if run.cfg_scale == 0.0 else text[1:]
        timestep = torch.full((1,), row.timestep, device=latents.device)
        with circular_padding(tile, unet):
            out = unet(
                (wanted * row.c_in).to(self._bundle.dtype)[None],
                timestep,
                encoder_hidden_states=side,
                return_dict=False,
            )[0][0].float()
        # Unit RMS before it goes through half precision.
        scaled = gradient / gradient.square().mean().sqrt().clamp(min=1e-30)
        (carried,) = torch.autograd.grad(a * wanted + b * out, wanted, scaled)
        return carried


@contextmanager
def _gradients() -> Iterator[None]:
    """Autograd within the engine's inference mode. Tensors made in that mode must be cloned."""
    with torch.inference_mode(False), torch.enable_grad():
        yield
