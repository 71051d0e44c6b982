"""Stage 1: the autoencoder. AutoencoderKL, 8 pixels to a latent, 4 channels.

Trained on the posterior mean with a little fixed noise and a weak pull of the latents to zero,
instead of sampling under a KL term: with so few steps sampling costs the colours.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from scripts.training.data import crops, draw_scenes, photograph_crops, sheet, to_model
from scripts.training.trainer import Plan, Run, load_checkpoint

CROPS = ((64, 8, 20000), (128, 2, 5000))
"""Side in pixels, pictures a step, how many are drawn. Small ones for many steps; larger ones
because group norms see another mean over a whole picture than over a corner of it."""
LATENT_NOISE = 0.05
POSTERIOR_LOGVAR = -6.0
SIZES = (96, 128, 192, 256, 320)
COLOUR_CHANNELS = (0, 2, 6)
CONSTANT_CHANNELS = (4, 8)
CONSTANT = 1.5


def make_vae() -> AutoencoderKL:
    """About 1.1 M parameters that start as a shrunken copy of the picture: `_start_as_copy`."""
    vae = AutoencoderKL(
        block_out_channels=(24, 48, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=320,
        force_upcast=False,
    )
    with torch.no_grad():
        _start_as_copy(vae)
    return vae


def _start_as_copy(vae: AutoencoderKL) -> None:
    """Set the weights so that red, green and blue pass the whole way from the first step on.

    Without this the network learns brightness first and spends thousands of steps without colours.
    Each colour travels as a pair of channels (x, -x): ``silu(x) - silu(-x) = x``, and a group of
    such pairs has mean 0, so group norms only scale it; constant pairs keep that scale steady.
    Residual branches begin at zero, resizing and shortcut convolutions as identities.
    """
    for name, module in vae.named_modules():
        if name.endswith(("conv2", "to_out.0")):
            module.weight.zero_()
            module.bias.zero_()
        if name.endswith(("downsamplers.0.conv", "upsamplers.0.conv", "conv_shortcut")):
            module.weight.mul_(0.05)
            module.bias.zero_()
            middle = module.weight.shape[-1] // 2
            for channel in range(min(module.weight.shape[:2])):
                # Down-sampling takes the mean of four pixels: its padding is on the far side.
                if "downsamplers" in name:
                    module.weight[channel, channel, :2, :2] += 0.25
                else:
                    module.weight[channel, channel, middle, middle] += 1
        if name in ("quant_conv", "post_quant_conv"):
            module.weight.mul_(0.05)
            module.bias.zero_()
            for channel in range(4):
                module.weight[channel, channel, 0, 0] += 1
    for conv in (vae.encoder.conv_in, vae.decoder.conv_in):
        conv.weight.mul_(0.1)
        conv.bias.zero_()
        for index, channel in enumerate(COLOUR_CHANNELS):
            conv.weight[channel : channel + 2] = 0
            conv.weight[channel, index, 1, 1] = 1
            conv.weight[channel + 1, index, 1, 1] = -1
        for channel in CONSTANT_CHANNELS:
            conv.weight[channel : channel + 2] = 0
            conv.bias[channel], conv.bias[channel + 1] = CONSTANT, -CONSTANT
    for conv in (vae.encoder.conv_out, vae.decoder.conv_out):
        conv.weight.mul_(0.1)
        conv.bias.zero_()
        for index, channel in enumerate(COLOUR_CHANNELS):
            conv.weight[index] = 0
            conv.weight[index, channel, 1, 1] = 1
            conv.weight[index, channel + 1, 1, 1] = -1


class FixedFeatures(torch.nn.Module):
    """Random convolutions at a half, a quarter and an eighth of the size, fixed.

    A cheap perceptual measure: random features tell textures and edges apart well enough to keep
    them from blurring (He, Wang and Hopcroft 2016), and need no network trained elsewhere.
    """

    def __init__(self, channels: int = 12) -> None:
        super().__init__()
        self.first: torch.Tensor
        self.second: torch.Tensor
        generator = torch.Generator().manual_seed(20)
        first = torch.randn(channels, 3, 5, 5, generator=generator)
        self.register_buffer("first", (first - first.mean(dim=(2, 3), keepdim=True)) / 75**0.5)
        second = torch.randn(channels, channels, 3, 3, generator=generator)
        self.register_buffer("second", second / (9 * channels) ** 0.5)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        features = []
        for _ in range(3):
            x = F.avg_pool2d(x, 2)
            h = F.relu(F.conv2d(x, self.first, padding=2))
            features += [h, F.relu(F.conv2d(h, self.second, padding=1))]
        return features


def reconstruction_losses(
    x: torch.Tensor, y: torch.Tensor, features: FixedFeatures
) -> dict[str, torch.Tensor]:
    """L1, gradient, low-pass and perceptual terms of ``y`` against ``x``."""
    l1 = (x - y).abs().mean()
    gradient = (x.diff(dim=2) - y.diff(dim=2)).abs().mean()
    gradient = gradient + (x.diff(dim=3) - y.diff(dim=3)).abs().mean()
    low = (F.avg_pool2d(x, 4) - F.avg_pool2d(y, 4)).abs().mean()
    with torch.no_grad():
        wanted = features(x)
    perceptual = torch.stack(
        [(a - b).abs().mean() for a, b in zip(wanted, features(y), strict=True)]
    ).mean()
    return {"l1": l1, "gradient": gradient, "low": low, "perceptual": perceptual}


def psnr(x: torch.Tensor, y: torch.Tensor) -> float:
    """Mean peak signal-to-noise ratio in dB of pictures in -1..1."""
    error = ((x - y.clamp(-1, 1)) / 2).pow(2).mean(dim=(1, 2, 3))
    return float((-10 * torch.log10(error)).mean())


def train_vae(
    folder: Path,
    steps: int | None,
    minutes: float,
    device: torch.device,
    *,
    crop_share: float = 1.0,
    decoder_only: bool = False,
    learning_rate: float = 1e-3,
    photographs: Path | None = None,
) -> None:
    """Train, or with ``decoder_only`` sharpen the decoder on latents that stay as they are; every
    second step on crops of ``photographs``, where a folder of some is given."""
    vae = make_vae().to(device, memory_format=torch.channels_last)
    run = Run(folder, vae, Plan(steps, learning_rate, minutes=minutes))
    if decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    sets = [
        (batch, crops(int(count * crop_share), side, 1 + run.step, [s for s in SIZES if s >= side]))
        for side, batch, count in CROPS
    ]
    if photographs is not None:
        sets += [
            (batch, photograph_crops(photographs, int(count * crop_share), side, 2 + run.step))
            for side, batch, count in CROPS
        ]
    held_out = to_model(draw_scenes(8, (320, 320), 99, split="held_out").pictures).to(device)
    features = FixedFeatures().to(device)
    generator = torch.Generator().manual_seed(run.step)

    def step(number: int) -> dict[str, torch.Tensor]:
        batch, data = sets[number % len(sets)]
        chosen = torch.randint(len(data), (batch,), generator=generator)
        x = to_model(data[chosen]).to(device, memory_format=torch.channels_last)
        z = vae.encode(x).latent_dist.mean
        y = vae.decode(z + LATENT_NOISE * torch.randn_like(z)).sample
        parts = reconstruction_losses(x, y, features)
        loss = parts["l1"] + 0.5 * parts["gradient"] + 0.5 * parts["low"]
        loss = loss + 0.5 * parts["perceptual"] + 1e-4 * z.pow(2).mean()
        return {"loss": loss, **parts}

    @torch.no_grad()
    def report(_: int) -> dict[str, float]:
        z = vae.encode(held_out).latent_dist.mean
        y = vae.decode(z).sample
        sheet([held_out[:6], y[:6]], folder / "sheet.png")
        return {"psnr": psnr(held_out, y), "latent_std": float(z.std())}

    run.train(step, report)


@torch.no_grad()
def finished_vae(folder: Path, device: torch.device) -> AutoencoderKL:
    """The trained autoencoder, its posterior narrow, its scaling factor measured.

    The factor is one over the standard deviation of the means over drawn scenes, so that latents
    have unit variance, as for Stable Diffusion.
    """
    vae = make_vae()
    vae.load_state_dict(load_checkpoint(folder)["model"])
    # Training never read the log variances: a narrow constant is what the loss assumed.
    channels = vae.config.latent_channels
    vae.quant_conv.weight[channels:] = 0
    vae.quant_conv.bias[channels:] = POSTERIOR_LOGVAR
    vae.to(device).eval()
    pictures = to_model(draw_scenes(48, (192, 192), 7).pictures).to(device)
    z = vae.encode(pictures).latent_dist.mean
    vae.register_to_config(scaling_factor=round(float(1 / z.std()), 5))
    return vae
