"""One part of a model (U-Net, VAE, text encoder): made without weights, then filled one by one.

A tensor is read, moved and converted before the next one is read, so that loading needs little
more host memory than what stays there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from models.errors import ModelLoadError
from models.loading.json_files import read_object
from models.loading.weights_file import WeightsFile

Candidates = Callable[[str], Sequence[str]]
"""The names that a tensor of diffusers' layout may have in a file, the best one first."""


_FURTHER_INPUTS = {
    "time_cond_proj_dim": "the guidance scale",
    "encoder_hid_dim": "a text or picture of another width",
    "encoder_hid_dim_type": "a text or picture of another width",
    "class_embed_type": "a class",
    "num_class_embeds": "a class",
    "addition_embed_type": "an addition to the timestep",
}
"""Keys that a U-Net's configuration has where it reads more than latents, timestep and text."""


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a part. Raises ModelLoadError."""
    return read_object(folder / "config.json")


def make_unet(folder: Path) -> Any:
    """A UNet2DConditionModel without weights, as a folder's ``config.json`` describes it."""
    from diffusers import UNet2DConditionModel

    config = read_config(folder)
    name = config.get("_class_name", "UNet2DConditionModel")
    if name != "UNet2DConditionModel":
        raise ModelLoadError(f"{folder} is a {name}, not a UNet2DConditionModel")
    for key, what in _FURTHER_INPUTS.items():
        if (value := config.get(key)) is not None:
            raise ModelLoadError(
                f"{folder / 'config.json'}: {key} is {value!r}: this U-Net also reads {what}, "
                "which this server does not give"
            )
    return _without_weights(lambda: UNet2DConditionModel.from_config(config), folder)


def make_vae(folder: Path) -> Any:
    """An AutoencoderKL or AutoencoderTiny without weights."""
    from diffusers import AutoencoderKL, AutoencoderTiny

    config = read_config(folder)
    if config.get("_class_name") == "AutoencoderTiny":
        # save_pretrained writes it, and the class complains of it when it reads it.
        config.pop("block_out_channels", None)
    classes = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
    name = str(config.get("_class_name", "AutoencoderKL"))
    if name not in classes:
        raise ModelLoadError(f"{folder} is a {name}, not one of {', '.join(classes)}")
    factor = config.get("scaling_factor", 1.0)
    if not (isinstance(factor, int | float) and 0 < factor < math.inf):
        raise ModelLoadError(
            f"{folder / 'config.json'}: scaling_factor is {factor!r}, not a number above 0"
        )
    return _without_weights(lambda: classes[name].from_config(config), folder)


def make_text_encoder(folder: Path) -> Any:
    """A CLIPTextModel without weights."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = read_config(folder)
    if config.get("model_type") == "clip":
        config = config.get("text_config", {})

    def make() -> Any:
        return CLIPTextModel._from_config(CLIPTextConfig.from_dict(_inert(config)))

    return _without_weights(make, folder)


def make_clip(folder: Path) -> Any:
    """A CLIPModel without weights."""
    from transformers import CLIPConfig, CLIPModel

    config = read_config(folder)
    return _without_weights(
        lambda: CLIPModel._from_config(CLIPConfig.from_dict(_inert(config))), folder
    )


def make_safety_checker(folder: Path) -> Any:
    """A StableDiffusionSafetyChecker without weights."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    config = read_config(folder)
    return _without_weights(
        lambda: StableDiffusionSafetyChecker._from_config(CLIPConfig.from_dict(_inert(config))),
        folder,
    )


def _inert(config: Any) -> Any:
    """Return a configuration without what names code to fetch: remote classes and kernels."""
    if not isinstance(config, dict):
        return config
    named = ("auto_map", "attn_implementation", "experts_implementation", "quantization_config")
    kept = {key: value for key, value in config.items() if key.lstrip("_") not in named}
    return {k: _inert(v) if k.endswith("_config") else v for k, v in kept.items()}


def _without_weights(make: Callable[[], Any], folder: Path) -> Any:
    from accelerate import init_empty_weights

    try:
        with init_empty_weights(include_buffers=False):
            return make()
    except ModelLoadError:
        raise
    except Exception as error:  # whatever a library makes of a bad configuration
        raise ModelLoadError(f"{folder / 'config.json'} is not usable: {error}") from error


def fill(
    module: Any,
    files: Sequence[WeightsFile],
    candidates: Candidates,
    *,
    device: torch.device,
    dtype: torch.dtype,
    what: str,
) -> Any:
    """Give ``module`` its weights from ``files``, on ``device`` in ``dtype``; ready for inference.

    ``what`` names the part in messages. Raises ModelLoadError if a tensor is missing, has another
    shape, or holds values that are not finite in ``dtype``.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    places = {name: _find(files, candidates(name)) for name in expected}
    missing = [name for name, place in places.items() if place is None]
    if missing:
        raise ModelLoadError(
            f"{what} lacks {len(missing)} of {len(expected)} tensors, such as {missing[0]}: "
            "it is incomplete, or not of Stable Diffusion 1.x"
        )
    for file in files:
        ours = {place[1]: name for name, place in places.items() if place and place[0] is file}
        for key, tensor in file.read(ours):
            name = ours[key]
            _set(module, name, _converted(tensor, expected[name], key, file, device, dtype))
    # What is not in files (CLIP's position ids) was made on the CPU.
    return module.to(device).eval().requires_grad_(False)


def _find(files: Sequence[WeightsFile], names: Sequence[str]) -> tuple[WeightsFile, str] | None:
    for name in names:
        for file in files:
            if name in file.tensors:
                return file, name
    return None


def _converted(
    tensor: torch.Tensor,
    shape: tuple[int, ...],
    key: str,
    file: WeightsFile,
    device: torch.device,
    dtype: torch.dtype,
) -> torch.Tensor:
    """A copy on ``device``; a 1 x 1 convolution's weight where a linear layer's is expected too."""
    got = tuple(tensor.shape)
    if got != shape and got[: len(shape)] == shape and set(got[len(shape) :]) == {1}:
        tensor = tensor.reshape(shape)
    elif got != shape:
        raise ModelLoadError(
            f"{file.path}: {key} has shape {got}, not {shape}: another architecture"
        )
    # channels_last is what convolutions run fastest in, on CUDA and on the CPU alike.
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    value = torch.empty(shape, dtype=dtype, device=device, memory_format=layout)
    value.copy_(tensor)
    # One value that is not finite makes the sum so; a sum needs no copy as large as the tensor.
    if not bool(torch.isfinite(value.sum(dtype=torch.float32))):
        raise ModelLoadError(
            f"{file.path}: {key} holds NaN or infinity in {str(dtype).removeprefix('torch.')}: "
            "the file is damaged, or needs IMG2IMG_DTYPE=bfloat16 or float32"
        )
    return value


def _set(module: Any, name: str, value: torch.Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    parent = module.get_submodule(owner)
    if leaf in parent._parameters:
        parent._parameters[leaf] = torch.nn.Parameter(value, requires_grad=False)
    else:
        parent._buffers[leaf] = value


def diffusers_vae_names(name: str) -> Sequence[str]:
    """Names in diffusers' layout; before 0.18 attention had others, which files still have."""
    if ".attentions." not in name:
        return (name,)
    old = name
    for new_part, old_part in (
        (".to_q.", ".query."),
        (".to_k.", ".key."),
        (".to_v.", ".value."),
        (".to_out.0.", ".proj_attn."),
    ):
        old = old.replace(new_part, old_part)
    return (name, old)


def transformers_clip_names(name: str) -> Sequence[str]:
    """A CLIP tower's names; before transformers 5.6 a checker's tower was a model within one."""
    return (name, name.replace("vision_model.", "vision_model.vision_model.", 1))


def transformers_text_names(name: str) -> Sequence[str]:
    """A text encoder's names; before transformers 5.6 all began with ``text_model``."""
    return (name, f"text_model.{name}")
