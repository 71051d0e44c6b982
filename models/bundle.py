"""A loaded model: everything that a request needs of it, on one device, in one dtype."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from models.clip import ClipModel
from models.padding import circular_padding


@dataclass(frozen=True)
class VaeStep:
    """One step of an encode or a decode: ``run(x, circular)``, and its cost a pixel of the picture,
    in multiply-adds (a rough count)."""

    run: Callable[[torch.Tensor, bool], torch.Tensor]
    cost: float


class UNetForward(Protocol):
    """The signature of `models.acceleration.unet.FastUNet`."""

    def __call__(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        text: torch.Tensor,
        *,
        circular: bool = False,
    ) -> torch.Tensor: ...


class VaeForward(Protocol):
    """The steps of `models.acceleration.vae.FastVae` that a pass runs."""

    @property
    def encoder(self) -> Sequence[VaeStep]: ...

    @property
    def decoder(self) -> Sequence[VaeStep]: ...


@dataclass(frozen=True, eq=False)
class FastForwards:
    """The forwards that there are; None where the modules run. ``reasons`` say why, by part."""

    unet: UNetForward | None = None
    vae: VaeForward | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def in_words(self) -> str:
        """For a log line or the doctor."""
        fast = [name for name, part in (("U-Net", self.unet), ("VAE", self.vae)) if part]
        slow = [f"{name} by its modules ({why})" for name, why in self.reasons.items()]
        return "; ".join(
            [*([f"{' and '.join(fast)} by kernels of our own"] if fast else []), *slow]
        )


@dataclass(frozen=True, eq=False)
class CompiledParts:
    """Compiled forms, called as the parts are.

    They are for latents of ``sizes``, (h, w), and the U-Net's for ``rows`` rows and one chunk of
    ``text_length`` tokens. ``encode`` takes (1, 3, H, W) pictures to what the VAE's encoder gives,
    ``decode`` (1, 4, h, w) latents to pictures.
    """

    sizes: frozenset[tuple[int, int]]
    rows: frozenset[int]
    text_length: int
    unet: Any
    encode: Callable[[torch.Tensor], torch.Tensor]
    decode: Callable[[torch.Tensor], torch.Tensor]
    text_encoder: Any

    def covers(self, height: int, width: int, tile: bool) -> bool:
        """Return whether these are for latents of that size; circular padding is not compiled."""
        return not tile and (height, width) in self.sizes

    def covers_step(self, rows: int, height: int, width: int, tokens: int, tile: bool) -> bool:
        """Return whether the U-Net is for such a forward; any other would set the compiler
        going."""
        fits = rows in self.rows and tokens == self.text_length
        return fits and self.covers(height, width, tile)


@dataclass(eq=False)
class ModelBundle:
    """Stable Diffusion 1.x in parts, whatever kind of file it came from.

    ``unet`` is a diffusers UNet2DConditionModel, ``vae`` an AutoencoderKL or AutoencoderTiny,
    ``text_encoder`` a transformers CLIPTextModel and ``tokenizer`` its CLIPTokenizer.
    ``scheduler_config`` is what the model says of the noise schedule it was trained with. ``clip``
    judges pictures, for CLIP guidance; None where there is none. ``embeddings`` are textual
    inversions: a name in a prompt to the rows of the text encoder's table that stand for it.
    ``preview_vae`` is an AutoencoderTiny that draws previews, None where a linear map does.
    ``facts`` say in words where the parts came from. Pictures of more than ``vae_tile_above``
    pixels go through the VAE in tiles; None: none do.
    """

    name: str
    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler_config: dict[str, Any]
    device: torch.device
    dtype: torch.dtype
    path: Path | None = None
    clip: ClipModel | None = None
    embeddings: dict[str, tuple[int, ...]] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    compiled: CompiledParts | None = None
    fast: FastForwards | None = None
    vae_tile_above: int | None = None
    preview_vae: Any = None

    @property
    def latent_channels(self) -> int:
        return int(self.unet.config.in_channels)

    @property
    def scaling_factor(self) -> float:
        """The factor that gives encoded latents unit variance."""
        return float(self.vae.config.scaling_factor)

    @property
    def downscale(self) -> int:
        """Pixels to a side of one latent: 8 for Stable Diffusion."""
        return downscale(self.vae)

    @property
    def text_length(self) -> int:
        """Tokens in one chunk of text, start and end included: 77 for CLIP.

        A tokenizer whose configuration says no length takes texts of 10**30.
        """
        positions = self.text_encoder.config.max_position_embeddings
        return int(min(float(self.tokenizer.model_max_length), positions))

    @property
    def text_width(self) -> int:
        return int(self.text_encoder.config.hidden_size)

    @property
    def head_sizes(self) -> tuple[int, ...]:
        """Channels of one attention head in the U-Net's blocks: 40, 80, 160 and 160."""
        widths = self.unet.config.block_out_channels
        # diffusers' attention_head_dim is the number of heads, a name that came to stay.
        heads = self.unet.config.attention_head_dim
        counts = [heads] * len(widths) if isinstance(heads, int) else heads
        return tuple(width // count for width, count in zip(widths, counts, strict=True))

    @property
    def weight_bytes(self) -> int:
        """Bytes that the parameters of the U-Net, VAE and text encoder take on the device."""
        parts = (self.unet, self.vae, self.text_encoder)
        return sum(stored_bytes(p) for part in parts for p in part.parameters())

    def latent_size(self, width: int, height: int) -> tuple[int, int]:
        """(h, w) of the latents of a picture."""
        return height // self.downscale, width // self.downscale

    def predict(
        self, latents: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor, tile: bool
    ) -> torch.Tensor:
        """Run the U-Net, by whatever form of it is for such a forward, without gradients.

        (R, 4, h, w) latents, (R,) timesteps and (R, T, D) text states to (R, 4, h, w); ``tile``
        pads convolutions with the opposite edge.
        """
        if self.fast is not None and self.fast.unet is not None:
            return self.fast.unet(latents, timestep, text, circular=tile)
        rows, _, height, width = latents.shape
        unet = self.unet_for(rows, height, width, text.shape[1], tile)
        with circular_padding(tile, self.unet):
            made: torch.Tensor = unet(
                latents, timestep, encoder_hidden_states=text, return_dict=False
            )[0]
        return made

    def unet_for(self, rows: int, height: int, width: int, tokens: int, tile: bool) -> Any:
        """The U-Net's module for such a forward: compiled where there is a compiled form for it."""
        compiled = self.compiled
        if compiled is not None and compiled.covers_step(rows, height, width, tokens, tile):
            return compiled.unet
        return self.unet


def downscale(vae: Any) -> int:
    """Return a VAE's pixels to a side of one latent."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def stored_bytes(parameter: torch.Tensor) -> int:
    """Return the bytes that a parameter takes on its device, quantised or not.

    A torchao tensor says the size that it stands for; it flattens into what it holds.
    """
    if not hasattr(parameter, "__tensor_flatten__"):
        return int(parameter.nbytes)
    names, _ = parameter.__tensor_flatten__()
    return sum(stored_bytes(getattr(parameter, name)) for name in names)
