"""Stage 4: the U-Net, on epsilon, over latents that were encoded once.

Prompt dropout of 10 % for classifier-free guidance, min-SNR weights (Hang et al. 2023, gamma 5),
averaged weights. The weight of the picture's error has a floor too: an error of the picture is
divided by sigma in epsilon, so that at the highest noise, where shapes are decided, a U-Net on
epsilon would learn next to nothing of them. Mostly small latents first, because there a step is
cheap and colours, kinds and words can be learnt; then latents of 40 x 40 and its neighbours, the
sizes that are served.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

from embedded.captions import caption, dropped_caption
from embedded.layers import Layers
from embedded.world import Scene, draw, sample_scene
from models.device import choose_dtype
from training.data import Size, sheet, to_model
from training.tokenizer import encode
from training.trainer import Plan, Run

TRAIN_TIMESTEPS = 1000
GAMMA = 5.0
FLOOR = 0.3
DROPOUT = 0.1
THING_OFFSET, BACKGROUND_OFFSET = 0.8, 0.4
OUTLINE_TIMESTEP = 650


@dataclass(frozen=True)
class Phase:
    """Sizes in pixels with how many scenes of each, and the batch that one step takes."""

    name: str
    sets: tuple[tuple[Size, int], ...]
    batch: int


PHASES = {
    "small": Phase("small", (((128, 128), 9000), ((192, 128), 2000), ((128, 192), 2000)), 32),
    "served": Phase("served", (((320, 320), 2600), ((384, 320), 400), ((320, 384), 400)), 8),
}


def make_unet(text_width: int) -> UNet2DConditionModel:
    """About 8.3 M parameters. Attention at half and a quarter of the latent's side, none at full
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


@dataclass(frozen=True, eq=False)
class Encoded:
    """Scenes of one size with their scaled latents, (N, 4, h, w) float16.

    ``things`` is the share of each latent's pixels that are of a thing, (N, 1, h, w) float16.
    """

    scenes: list[Scene]
    latents: torch.Tensor
    things: torch.Tensor


def scenes_of(phase: Phase, index: int) -> list[Scene]:
    """The scenes of one set of a phase: a program and a seed, so never stored."""
    (size, count) = phase.sets[index]
    rng = np.random.default_rng([11, size[0], size[1]])
    return [sample_scene(rng, *size, styled=0.5) for _ in range(count)]


def pictures_of(phase: Phase, index: int, folder: Path) -> np.ndarray:
    """The drawn scenes of one set, (N, height, width, 3) uint8; drawn once and kept as a file."""
    (width, height), count = phase.sets[index]
    path = folder / f"{width}x{height}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        shape = (count, height, width, 3)
        unfinished = path.with_suffix(".part")
        pictures = np.lib.format.open_memmap(unfinished, "w+", np.uint8, shape)
        for i, scene in enumerate(scenes_of(phase, index)):
            pictures[i] = draw(scene)
        pictures.flush()
        unfinished.rename(path)
        print(f"drew {count} of {width} x {height}", flush=True)
    return np.load(path, mmap_mode="r")


@torch.no_grad()
def encode_phase(
    phase: Phase, vae: AutoencoderKL, folder: Path, device: torch.device
) -> list[Encoded]:
    """Draw and encode the scenes of a phase, or read the latents that were kept."""
    sets = []
    factor = vae.config.scaling_factor
    # Twice as fast in bfloat16, and its error is a hundredth of a latent's spread.
    encoder = deepcopy(vae).to(torch.bfloat16, memory_format=torch.channels_last)
    for index, ((width, height), count) in enumerate(phase.sets):
        path = folder / f"{width}x{height}.pt"
        if path.exists():
            latents = torch.load(path, weights_only=True)
        else:
            pictures = pictures_of(phase, index, folder)
            parts = []
            for start in range(0, count, 32):
                chosen = torch.from_numpy(pictures[start : start + 32].copy())
                x = to_model(chosen.permute(0, 3, 1, 2)).to(device)
                x = x.to(torch.bfloat16, memory_format=torch.channels_last)
                parts.append((encoder.encode(x).latent_dist.mean * factor).half().cpu())
            latents = torch.cat(parts)
            torch.save(latents, path)
            print(f"encoded {count} of {width} x {height}", flush=True)
        scenes = scenes_of(phase, index)
        sets.append(Encoded(scenes, latents, _thing_masks(scenes)))
    return sets


def _thing_masks(scenes: list[Scene]) -> torch.Tensor:
    """Where the things of each scene are, at the size of its latents."""
    masks = []
    for scene in scenes:
        small = (scene.width // 8, scene.height // 8)
        # The unstyled drawing at the latents' own size: cheap, and near enough for every look.
        drawn = Layers(replace(scene, style=None, width=small[0] * 2, height=small[1] * 2)).mask
        masks.append(np.asarray(drawn.resize(small, Image.Resampling.BOX), dtype=np.float16) / 255)
    return torch.from_numpy(np.stack(masks))[:, None]


def regional_offsets(
    things: torch.Tensor, t: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """A constant per channel on the things and another on the background, (N, 4, h, w).

    Offset noise by region. An image-to-image start has the old picture's colours in its noisy
    latents, over areas so large that the noise averages out: without this, the model has learnt
    to believe them and not the prompt. With it, the mean of an area says little, as in the picture
    that an edit starts from. Less of it behind the things, where a prompt often names nothing and
    the picture is what there is to go by.

    The outline of the offset is the thing's own only at the noise levels ``t`` at which an edit
    sees the old outline too. Above them it would give the shape away: the model then waits for an
    outline in the noise instead of taking the shape from the prompt, and from noise alone makes
    blobs. There a few samples have another scene's outline, the others none.
    """
    count = len(things)
    shape = (count, 4, 1, 1)

    def chosen(share: float) -> torch.Tensor:
        return torch.rand((count, 1, 1, 1), generator=generator) < share

    early = (t >= OUTLINE_TIMESTEP)[:, None, None, None]
    things = torch.where(early, things.roll(1, dims=0), things)
    on_things = THING_OFFSET * torch.randn(shape, generator=generator)
    behind = BACKGROUND_OFFSET * torch.randn(shape, generator=generator) * chosen(0.5)
    applied = torch.where(early, chosen(0.2), chosen(0.7))
    return applied * (things * on_things + (1 - things) * behind)


def train_unet(
    folder: Path,
    phase: Phase,
    sets: list[Encoded],
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    plan: Plan,
    device: torch.device,
) -> None:
    """Train one phase; ``folder`` may hold the checkpoint of an earlier one."""
    torch.manual_seed(5)
    unet = make_unet(text_encoder.config.hidden_size).to(device, memory_format=torch.channels_last)
    run = Run(folder, unet, plan)
    text_encoder = text_encoder.to(device).eval().requires_grad_(False)
    abar = alphas_cumprod()
    snr = abar / (1 - abar)
    weights = (torch.clamp(snr, min=FLOOR, max=GAMMA) / snr).float()
    rng = np.random.default_rng([17, run.step])
    generator = torch.Generator().manual_seed(run.step)
    shares = np.array([len(s.scenes) for s in sets], dtype=float)
    # Weights stay float32. At small latents the casts cost a CPU more than they save.
    small = phase.name == "small"
    mixed = choose_dtype("auto", device) != torch.float32 and not (device.type == "cpu" and small)

    def step(_: int) -> dict[str, torch.Tensor]:
        chosen_set = sets[int(rng.choice(len(sets), p=shares / shares.sum()))]
        chosen = rng.integers(len(chosen_set.scenes), size=phase.batch)
        texts = [
            dropped_caption(chosen_set.scenes[i], rng)
            if rng.random() < DROPOUT
            else caption(chosen_set.scenes[i], rng)
            for i in chosen
        ]
        things = chosen_set.things
        x0 = chosen_set.latents[torch.from_numpy(chosen)].float()
        # One timestep from each equal part of the range: less spread between steps.
        part = torch.rand(phase.batch, generator=generator) + torch.arange(phase.batch)
        t = (part * TRAIN_TIMESTEPS / phase.batch).long().clamp(max=TRAIN_TIMESTEPS - 1)
        noise = torch.randn(x0.shape, generator=generator)
        outlines = things[torch.from_numpy(chosen)].float()
        noise = noise + regional_offsets(outlines, t, generator)
        a = abar[t].float()[:, None, None, None]
        noisy = a.sqrt() * x0 + (1 - a).sqrt() * noise
        with torch.no_grad():
            ids = torch.tensor(encode(tokenizer, texts), device=device)
            text = text_encoder(ids)[0]
        noisy = noisy.to(device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            out = unet(noisy, t.to(device), encoder_hidden_states=text, return_dict=False)[0]
        error = (out.float() - noise.to(device)).pow(2).mean(dim=(1, 2, 3))
        return {"loss": (error * weights[t].to(device)).mean(), "mse": error.mean()}

    def report(step: int) -> dict[str, float]:
        averaged = make_unet(text_encoder.config.hidden_size).to(device)
        averaged.load_state_dict(run.averaged_weights())
        draw_sheet(averaged, vae, text_encoder, tokenizer, folder / f"sheet-{step:06d}.png", device)
        return {}

    run.train(step, report)


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
