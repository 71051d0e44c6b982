"""The last stage: the U-Net, on epsilon, over latents of pairs that are drawn meanwhile.

Half of the noise holds what an edit starts from: see `with_ghosts`. Prompt dropout of 10 % for
classifier-free guidance, min-SNR weights (Hang et al. 2023, gamma 5), averaged weights. The weight
of the picture's error has a floor too: an error of the picture is divided by sigma in epsilon, so
that at the highest noise, where shapes are decided, a U-Net on epsilon would learn next to nothing
of them. Mostly small latents first, because there a step is cheap and colours, kinds and words can
be learnt; then latents of 40 x 40 and its neighbours, the sizes that are served.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from transformers import CLIPTextModel, CLIPTokenizer

from scripts.training.data import sheet
from scripts.training.pairs import Feed, Phase
from scripts.training.tokenizer import encode
from scripts.training.trainer import Plan, Run, compute_dtype
from scripts.training.world.captions import dropped_caption
from scripts.training.world.scene import sample_scene

TRAIN_TIMESTEPS = 1000
GAMMA = 5.0
FLOOR = 1.0
# The least weight of an error of epsilon. Without it the lowest noise is hardly trained at all, and
# K_DPM_2_ANCESTRAL and K_LMS, which take long steps by what they see there, leave grain.
EPSILON_FLOOR = 0.3
DROPOUT = 0.1
# Shares of samples that start from the scene before the edit, and from any other picture, with the
# lowest timestep at which such a start lies; below it a picture is to be kept.
EDIT_SHARE, EDIT_TIMESTEP = 0.55, 400
OTHER_SHARE, OTHER_TIMESTEP = 0.1, 600
# Half of the samples lie between these timesteps, where an edit decides what a thing is. Above, a
# prompt leaves most of a picture open: errors there are the largest, and say the least.
SHAPES = (350, 750)
# On a card compiling takes minutes, and pays in a stretch of at least as many.
COMPILE_MINUTES = 20


@dataclass(frozen=True)
class Softening:
    """What is left of the way from no prompt's answer to the prompt's: ``low`` up to the first of
    the timesteps, ``high`` from the second."""

    low: float
    high: float
    timesteps: tuple[int, int]


# At low noise as little as makes cfg_scale 7 add nothing: guidance there only harms (Kynkaanniemi
# et al. 2024), and samplers of high order diverge. A look is made at low noise, and needs more.
PLAIN = Softening(0.15, 0.55, (300, 700))
STYLED = Softening(0.3, 0.5, (200, 500))

PHASES = {
    "small": Phase("small", (((128, 128), 0.7), ((192, 128), 0.15), ((128, 192), 0.15)), 32, 512),
    "served": Phase("served", (((320, 320), 0.8), ((384, 320), 0.1), ((320, 384), 0.1)), 16, 128),
}


def make_unet(text_width: int) -> UNet2DConditionModel:
    """7.5 M parameters. Attention at half and a quarter of the latent's side, none at full
    size, where most of the time would go. Residual branches start at zero."""
    unet = UNet2DConditionModel(
        sample_size=40,
        block_out_channels=(64, 96, 160),
        layers_per_block=1,
        cross_attention_dim=text_width,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=16,
        time_embedding_dim=256,
    )
    with torch.no_grad():
        for name, module in unet.named_modules():
            if name.endswith(("conv2", "proj_out")) or name == "conv_out":
                module.weight.zero_()
                module.bias.zero_()
    return unet


def alphas_cumprod() -> torch.Tensor:
    """Stable Diffusion's training schedule, (1000,) float64."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, TRAIN_TIMESTEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0)


def spread_timesteps(parts: torch.Tensor) -> torch.Tensor:
    """Return timesteps, (N,) int64, for ``parts`` of 0 to 1, (N,): half of the parts over the whole
    schedule, half over SHAPES."""
    first, last = SHAPES
    whole, shapes = parts * 2 * TRAIN_TIMESTEPS, first + (parts * 2 - 1) * (last - first)
    return torch.where(parts < 0.5, whole, shapes).long().clamp(max=TRAIN_TIMESTEPS - 1)


class _AttentionOnCPU:
    """torch's attention kernel where no gradient is asked for, plain products where one is: the
    kernel's backward pass would take half of a step."""

    def __init__(self) -> None:
        self._kernel, self._products = AttnProcessor2_0(), AttnProcessor()

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        processor = self._products if torch.is_grad_enabled() else self._kernel
        result: torch.Tensor = processor(*args, **kwargs)
        return result


def with_ghosts(
    noise: torch.Tensor,
    x0: torch.Tensor,
    earlier: torch.Tensor,
    t: torch.Tensor,
    dropped: torch.Tensor,
    abar: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """Noise of which a part leads from the picture before an edit, (N, 4, h, w).

    ``abar`` is `alphas_cumprod` as float32, on the samples' device: to copy it there in each step
    would be to wait for the device.

    An image-to-image run starts at a timestep s from sqrt(a_s) old + sqrt(1 - a_s) noise. For the
    picture that was asked for to be its answer, its noise must have been
    noise + sqrt(a_s / (1 - a_s)) (old - new), and on a deterministic sampler's path it stays that
    at every t below s. Trained on plain noise alone a model takes the old picture, which it can
    see, for the prompt's; trained on this it learns which words outweigh it. Samples whose prompt
    is ``dropped``, (N,), have such noise always: the more the answer to no prompt holds to what it
    sees, the further guidance throws a picture from it, in turns, from step to step.
    """
    count, device = len(x0), x0.device

    def uniform() -> torch.Tensor:
        return torch.rand(count, device=device, generator=generator)

    def start(lowest: int) -> torch.Tensor:
        least = t.clamp(min=lowest).float()
        s = least + uniform() * (TRAIN_TIMESTEPS - least)
        a = abar[s.long().clamp(max=TRAIN_TIMESTEPS - 1)]
        return (a / (1 - a)).sqrt()[:, None, None, None]

    which = uniform()
    which = torch.where(dropped, which * (EDIT_SHARE + OTHER_SHARE), which)[:, None, None, None]
    edit, other = start(EDIT_TIMESTEP), start(OTHER_TIMESTEP)
    ghosts = torch.where(which < EDIT_SHARE, edit * (earlier - x0), torch.zeros_like(x0))
    strange = (which >= EDIT_SHARE) & (which < EDIT_SHARE + OTHER_SHARE)
    return noise + torch.where(strange, other * (x0.roll(1, dims=0) - x0), ghosts)


def kept_share(t: torch.Tensor, styled: torch.Tensor) -> torch.Tensor:
    """How much softening leaves of what a prompt changes, (N,), at the timesteps ``t``, (N,), of
    scenes that have a style or have none, (N,) bool."""

    def of(softening: Softening) -> torch.Tensor:
        first, last = softening.timesteps
        way = ((t - first) / (last - first)).clamp(0, 1)
        return softening.low + (softening.high - softening.low) * way

    return torch.where(styled, of(STYLED), of(PLAIN))


def train_unet(
    folder: Path,
    phase: Phase,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    plan: Plan,
    device: torch.device,
) -> None:
    """Train one phase; ``folder`` may hold the checkpoint of an earlier one.

    The answer to a prompt is trained towards u + `kept_share` (noise - u), where u is the model's
    own answer to none (guidance distillation, Meng et al. 2023, the other way round). Our captions
    are never wrong, unlike those of pictures found anywhere, so that a model trained on the noise
    itself follows them at once and cfg_scale 7, the contract's default, would overshoot: pure
    colours and torn outlines. Errors are divided by the share, which leaves a prompt's gradient
    what it is without.
    """
    torch.manual_seed(5)
    unet = make_unet(text_encoder.config.hidden_size).to(device, memory_format=torch.channels_last)
    run = Run(folder, unet, plan)
    forward: Callable[..., tuple[torch.Tensor]] = unet
    if device.type == "cpu":
        unet.set_attn_processor(_AttentionOnCPU())
    elif plan.minutes >= COMPILE_MINUTES:
        forward = torch.compile(unet, dynamic=False)
    text_encoder = text_encoder.to(device).eval().requires_grad_(False)
    rng = np.random.default_rng([17, run.step])
    texts = ["", *(dropped_caption(sample_scene(rng, 320, 320), rng) for _ in range(255))]
    no_prompts = torch.tensor(encode(tokenizer, texts), device=device)
    with torch.no_grad():
        no_text = text_encoder(no_prompts[:1])[0]
    generator = torch.Generator(device).manual_seed(run.step)
    abar = alphas_cumprod().to(device)
    snr = abar / (1 - abar)
    weights = (torch.clamp(snr, min=FLOOR, max=GAMMA) / snr).clamp(min=EPSILON_FLOOR).float()
    abar = abar.float()
    mixed = compute_dtype(device) is torch.bfloat16  # the weights stay float32

    def step(_: int) -> dict[str, torch.Tensor]:
        batch = feed.take(generator)
        x0, count = batch.latents, len(batch.latents)

        def uniform() -> torch.Tensor:
            return torch.rand(count, device=device, generator=generator)

        # One timestep from each equal part: less spread between steps.
        t = spread_timesteps((uniform() + torch.arange(count, device=device)) / count)
        dropped = uniform() < DROPOUT
        noise = torch.randn(x0.shape, device=device, generator=generator)
        noise = with_ghosts(noise, x0, batch.earlier, t, dropped, abar, generator)
        a = abar[t][:, None, None, None]
        noisy = (a.sqrt() * x0 + (1 - a).sqrt() * noise).contiguous(
            memory_format=torch.channels_last
        )
        other = no_prompts[(uniform() * len(no_prompts)).long()]
        with torch.no_grad():
            text = text_encoder(torch.where(dropped[:, None], other, batch.ids))[0]
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            out = forward(noisy, t, encoder_hidden_states=text, return_dict=False)[0].float()
            with torch.no_grad():
                nothing = no_text.expand(count, -1, -1)
                none = forward(noisy, t, encoder_hidden_states=nothing, return_dict=False)[0]
        share = torch.where(dropped, 1.0, kept_share(t, batch.styled))
        target = torch.lerp(none.float(), noise, share[:, None, None, None])
        error = (out - target).pow(2).mean(dim=(1, 2, 3)) / share
        return {"loss": (error * weights[t]).mean(), "mse": error.mean()}

    def report(step: int) -> dict[str, float]:
        averaged = make_unet(text_encoder.config.hidden_size).to(device)
        averaged.load_state_dict(run.averaged_weights())
        draw_sheet(averaged, vae, text_encoder, tokenizer, folder / f"sheet-{step:06d}.png", device)
        return {}

    feed = Feed(phase, vae, tokenizer, device, run.step)
    try:
        run.train(step, report)
    finally:
        feed.close()


@torch.no_grad()
def sample(
    unet: UNet2DConditionModel,
    text: torch.Tensor,
    latents: torch.Tensor,
    *,
    steps: int = 20,
    cfg_scale: float = 5.0,
) -> torch.Tensor:
    """DDIM from unit noise; ``text`` is (2, N, 77, D), unconditional first. Gives latents."""
    abar = torch.cat([alphas_cumprod().float(), torch.ones(1)])
    times = torch.linspace(TRAIN_TIMESTEPS - 1, 0, steps).round().long().tolist()
    x = latents
    for now, then in zip(times, [*times[1:], TRAIN_TIMESTEPS], strict=True):
        t = torch.full((2 * len(x),), now, device=x.device)
        out = unet(torch.cat([x, x]), t, encoder_hidden_states=text.flatten(0, 1)).sample
        uncond, cond = out.chunk(2)
        eps = uncond + cfg_scale * (cond - uncond)
        x0 = (x - (1 - abar[now]).sqrt() * eps) / abar[now].sqrt()
        x = abar[then].sqrt() * x0 + (1 - abar[then]).sqrt() * eps
    return x


SHEET_PROMPTS = (
    "a red circle on a sky background",
    "a blue circle on a grass background",
    "a yellow star at night",
    "a green tree on a snow background",
    "a purple house in the desert",
    "an orange fish in the ocean",
    "a pink cat on a plain background",
    "a white boat at sunset next to a black car",
)


@torch.no_grad()
def draw_sheet(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    path: Path,
    device: torch.device,
) -> None:
    """From noise at 16 x 16 and at 40 x 40, the same prompts every time."""
    count, factor = len(SHEET_PROMPTS), vae.config.scaling_factor

    def encoded(prompts: list[str]) -> torch.Tensor:
        """(2, N, 77, D), unconditional first."""
        empty, ids = encode(tokenizer, [""] * len(prompts)), encode(tokenizer, prompts)
        return torch.stack(
            [text_encoder(torch.tensor(one, device=device))[0] for one in (empty, ids)]
        )

    text = encoded(list(SHEET_PROMPTS))
    generator = torch.Generator().manual_seed(1)
    small = torch.randn(count, 4, 16, 16, generator=generator).to(device)
    large = torch.randn(4, 4, 40, 40, generator=generator).to(device)
    top = vae.decode(sample(unet, text, small, steps=12) / factor).sample
    made = vae.decode(sample(unet, text[:, ::2], large, steps=12) / factor).sample
    bottom = F.interpolate(made, size=(256, 256), mode="area")
    lines = [torch.cat(list(row), dim=2)[None] for row in (top, bottom)]
    sheet(lines, path)
