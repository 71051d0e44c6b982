"""Stage 4: the U-Net, on epsilon, over latents that were encoded once.

Half of the noise holds what an edit starts from: see `with_ghosts`. Prompt dropout of 10 % for
classifier-free guidance, min-SNR weights (Hang et al. 2023, gamma 5), averaged weights. The weight
of the picture's error has a floor too: an error of the picture is divided by sigma in epsilon, so
that at the highest noise, where shapes are decided, a U-Net on epsilon would learn next to nothing
of them. Mostly small latents first, because there a step is cheap and colours, kinds and words can
be learnt; then latents of 40 x 40 and its neighbours, the sizes that are served.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextModel, CLIPTokenizer

from models.device import choose_dtype
from scripts.training.data import Size, sheet, to_model
from scripts.training.tokenizer import encode
from scripts.training.trainer import Plan, Run
from scripts.training.world.captions import caption, dropped_caption
from scripts.training.world.edits import earlier_scene
from scripts.training.world.looks import draw
from scripts.training.world.scene import Scene, sample_scene

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
# How many times as often as the others: a lone thing without a style, from which kinds are learnt
# soonest (when softening they come no more often: styles need it most); and a pair of pictures
# whose kinds of thing differ, as few edits of four do.
PLAIN_TIMES, KIND_TIMES = 3.0, 4.0


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
# Below it softening learns from the noise itself, shifted, rather than from what was learnt of it.
SHIFTED_TIMESTEP = 200


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


@dataclass(frozen=True, eq=False)
class Encoded:
    """Scenes of one size with their scaled latents, (N, 4, h, w) float16; and of each scene the one
    that it may be an edit of."""

    scenes: list[Scene]
    latents: torch.Tensor
    earlier: list[Scene]
    earlier_latents: torch.Tensor


def scenes_of(phase: Phase, index: int) -> tuple[list[Scene], list[Scene]]:
    """The scenes of one set of a phase, and what each was before an edit: a program and a seed, so
    never stored."""
    (size, count) = phase.sets[index]
    rng = np.random.default_rng([11, size[0], size[1]])
    scenes = [sample_scene(rng, *size, styled=0.5) for _ in range(count)]
    rng = np.random.default_rng([12, size[0], size[1]])
    return scenes, [earlier_scene(scene, rng) for scene in scenes]


def encode_phase(
    phase: Phase, vae: AutoencoderKL, folder: Path, device: torch.device
) -> list[Encoded]:
    """Draw and encode the scenes of a phase, or read the latents that were kept."""
    # Twice as fast in bfloat16, and its error is a hundredth of a latent's spread.
    encoder = deepcopy(vae).to(torch.bfloat16, memory_format=torch.channels_last)
    sets = []
    for index, ((width, height), _) in enumerate(phase.sets):
        scenes, earlier = scenes_of(phase, index)
        name = f"{width}x{height}"
        latents = _encoded(scenes, folder / f"{name}.pt", encoder, device)
        before = _encoded(earlier, folder / f"{name}-earlier.pt", encoder, device)
        sets.append(Encoded(scenes, latents, earlier, before))
    return sets


@torch.no_grad()
def _encoded(
    scenes: list[Scene], path: Path, encoder: AutoencoderKL, device: torch.device
) -> torch.Tensor:
    """The scaled latents of the drawn scenes, (N, 4, h, w) float16; kept at ``path``."""
    if path.exists():
        kept: torch.Tensor = torch.load(path, weights_only=True)
        return kept
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = []
    for start in range(0, len(scenes), 32):
        drawn = np.stack([draw(scene) for scene in scenes[start : start + 32]])
        x = to_model(torch.from_numpy(drawn).permute(0, 3, 1, 2)).to(device)
        x = x.to(torch.bfloat16, memory_format=torch.channels_last)
        factor = encoder.config.scaling_factor
        parts.append((encoder.encode(x).latent_dist.mean * factor).half().cpu())
    latents = torch.cat(parts)
    torch.save(latents, path)
    print(f"drew and encoded {len(scenes)}: {path.stem}", flush=True)
    return latents


def with_ghosts(
    noise: torch.Tensor,
    x0: torch.Tensor,
    earlier: torch.Tensor,
    t: torch.Tensor,
    dropped: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """Noise of which a part leads from the picture before an edit, (N, 4, h, w).

    An image-to-image run starts at a timestep s from sqrt(a_s) old + sqrt(1 - a_s) noise. For the
    picture that was asked for to be its answer, its noise must have been
    noise + sqrt(a_s / (1 - a_s)) (old - new), and on a deterministic sampler's path it stays that
    at every t below s. Trained on plain noise alone a model takes the old picture, which it can
    see, for the prompt's; trained on this it learns which words outweigh it. Samples whose prompt
    is ``dropped``, (N,), have such noise always: the more the answer to no prompt holds to what it
    sees, the further guidance throws a picture from it, in turns, from step to step.
    """
    count = len(x0)
    abar = alphas_cumprod().float()

    def start(lowest: int) -> torch.Tensor:
        least = t.clamp(min=lowest).float()
        s = least + torch.rand(count, generator=generator) * (TRAIN_TIMESTEPS - least)
        a = abar[s.long().clamp(max=TRAIN_TIMESTEPS - 1)]
        return (a / (1 - a)).sqrt()[:, None, None, None]

    which = torch.rand(count, generator=generator)
    which = torch.where(dropped, which * (EDIT_SHARE + OTHER_SHARE), which)[:, None, None, None]
    edit, other = start(EDIT_TIMESTEP), start(OTHER_TIMESTEP)
    ghosts = torch.where(which < EDIT_SHARE, edit * (earlier - x0), torch.zeros_like(x0))
    strange = (which >= EDIT_SHARE) & (which < EDIT_SHARE + OTHER_SHARE)
    return noise + torch.where(strange, other * (x0.roll(1, dims=0) - x0), ghosts)


def pick_shares(encoded: Encoded, plain_times: float) -> np.ndarray:
    """The probability of each pair of pictures in a batch, (N,), in sum 1; lone plain things come
    ``plain_times`` as often as others."""
    times = np.ones(len(encoded.scenes))
    for index, pair in enumerate(zip(encoded.scenes, encoded.earlier, strict=True)):
        if all(len(scene.things) == 1 and scene.style is None for scene in pair):
            times[index] *= plain_times
        kinds = [[thing.kind for thing in scene.things] for scene in pair]
        if kinds[0] != kinds[1]:
            times[index] *= KIND_TIMES
    shares: np.ndarray = times / times.sum()
    return shares


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
    sets: list[Encoded],
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    plan: Plan,
    device: torch.device,
    *,
    soften: bool = False,
) -> None:
    """Train one phase; ``folder`` may hold the checkpoint of an earlier one.

    ``soften`` ends the training. The answer to a prompt is moved towards the answer to none, to
    u + `kept_share` (c - u) of what the model gave when the phase began (guidance distillation,
    Meng et al. 2023, the other way round). Our captions are never wrong, unlike those of pictures
    found anywhere, so that the model follows them at once and cfg_scale 7, the contract's default,
    would overshoot: pure colours and torn outlines.
    """
    torch.manual_seed(5)
    unet = make_unet(text_encoder.config.hidden_size).to(device, memory_format=torch.channels_last)
    if device.type == "cpu":
        # The backward pass of torch's attention kernel for the CPU takes half of a step.
        unet.set_attn_processor(AttnProcessor())
    run = Run(folder, unet, plan)
    teacher = make_unet(text_encoder.config.hidden_size).to(device).requires_grad_(False)
    taught = folder / "before-softening.pt"
    if not soften:
        taught.unlink(missing_ok=True)
    elif taught.exists():  # softening that was ended early goes on towards the same answers
        teacher.load_state_dict(torch.load(taught, weights_only=True))
    else:  # a student of its own averages
        torch.save(run.averaged_weights(), taught)
        teacher.load_state_dict(run.averaged_weights())
        unet.load_state_dict(run.averaged_weights())
    text_encoder = text_encoder.to(device).eval().requires_grad_(False)
    with torch.no_grad():
        ids = torch.tensor(encode(tokenizer, [""]), device=device)
        no_text = text_encoder(ids)[0].repeat(phase.batch, 1, 1)
    abar = alphas_cumprod()
    snr = abar / (1 - abar)
    weights = (torch.clamp(snr, min=FLOOR, max=GAMMA) / snr).clamp(min=EPSILON_FLOOR).float()
    rng = np.random.default_rng([17, run.step])
    generator = torch.Generator().manual_seed(run.step)
    shares = np.array([len(s.scenes) for s in sets], dtype=float)
    picks = [pick_shares(s, 1.0 if soften else PLAIN_TIMES) for s in sets]
    mixed = choose_dtype("auto", device) != torch.float32  # the weights stay float32

    def step(_: int) -> dict[str, torch.Tensor]:
        index = int(rng.choice(len(sets), p=shares / shares.sum()))
        chosen_set = sets[index]
        chosen = rng.choice(len(chosen_set.scenes), size=phase.batch, p=picks[index])
        # Both of a pair are pictures worth making.
        swapped = torch.from_numpy(rng.random(phase.batch) < 0.5)
        scenes = [
            (chosen_set.earlier if swap else chosen_set.scenes)[i]
            for i, swap in zip(chosen.tolist(), swapped.tolist(), strict=True)
        ]
        dropped = [rng.random() < DROPOUT for _ in scenes]
        texts = [
            dropped_caption(scene, rng) if drop else caption(scene, rng)
            for scene, drop in zip(scenes, dropped, strict=True)
        ]
        picked = torch.from_numpy(chosen)
        pair = (chosen_set.latents[picked].float(), chosen_set.earlier_latents[picked].float())
        swap = swapped[:, None, None, None]
        x0, earlier = torch.where(swap, pair[1], pair[0]), torch.where(swap, pair[0], pair[1])
        # One timestep from each equal part of the range: less spread between steps.
        part = torch.rand(phase.batch, generator=generator) + torch.arange(phase.batch)
        part = (part / phase.batch) ** (2 if soften else 1)  # softening sees half of it below 250
        t = (part * TRAIN_TIMESTEPS).long().clamp(max=TRAIN_TIMESTEPS - 1)
        noise = torch.randn(x0.shape, generator=generator)
        noise = with_ghosts(noise, x0, earlier, t, torch.tensor(dropped), generator)
        a = abar[t].float()[:, None, None, None]
        noisy = a.sqrt() * x0 + (1 - a).sqrt() * noise
        with torch.no_grad():
            ids = torch.tensor(encode(tokenizer, texts), device=device)
            text = text_encoder(ids)[0]
        noisy = noisy.to(device).contiguous(memory_format=torch.channels_last)
        target = noise.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            out = unet(noisy, t.to(device), encoder_hidden_states=text, return_dict=False)[0]
            if soften:
                without, given = (
                    teacher(noisy, t.to(device), encoder_hidden_states=one, return_dict=False)[0]
                    for one in (no_text, text)
                )
                styled = torch.tensor([scene.style is not None for scene in scenes])
                share = torch.where(torch.tensor(dropped), 1.0, kept_share(t, styled))
                share = share.to(device)[:, None, None, None]
                moved = (1 - share) * (given.float() - without.float())
                low = (t < SHIFTED_TIMESTEP).to(device)[:, None, None, None]
                target = torch.where(low, target, given.float()) - moved
        error = (out.float() - target).pow(2).mean(dim=(1, 2, 3))
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
