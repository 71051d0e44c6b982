"""LoRAs: small changes to a model's layers, added to its weights when it is loaded.

A layer's change is ``weight * alpha / rank * up @ down`` (Hu et al. 2021, arXiv:2106.09685); of a
convolution, the same over its input positions, with a third factor ``mid`` in LoCon's Tucker form.
Fused, a LoRA costs nothing in a step and holds for every request.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from models.bundle import ModelBundle
from models.errors import ModelLoadError
from models.loading.identify import Contents, identify
from models.loading.json_files import parse_object, read_object
from models.loading.ldm_keys import unet_name
from models.loading.lora_kinds import other_method, other_model
from models.loading.textual_inversion import add_words, bundled_words, is_bundled
from models.loading.weights_file import WeightsFile

_FACTOR = re.compile(
    r"(?P<layer>.+?)(?:\.lora_linear_layer|\.lora|_lora)?"
    r"\.(?:(?P<side>lora_down|lora_up|lora_mid|down|up)|(?P<peft>lora_[AB])(?:\.[^.]+)?)\.weight"
)
_PEFT, _PEFT_FILE, _PEFT_CONFIG = (
    "base_model.model.",
    "adapter_model.safetensors",
    "adapter_config.json",
)
_TEXT_PREFIXES = (
    "",
    "text_encoder.",
    "clip_l.transformer.",
    "text_encoders.clip_l.transformer.",
    "cond_stage_model.transformer.",
)
_SIDES = {
    "lora_down": "down",
    "lora_A": "down",
    "down": "down",
    "lora_up": "up",
    "lora_B": "up",
    "up": "up",
    "lora_mid": "mid",
}


@dataclass(eq=False)
class LayerChange:
    """One layer's factors in one file, as stored, and the factor they are scaled with."""

    factors: dict[str, torch.Tensor] = field(default_factory=dict)
    alpha: float | None = None
    root_rank: bool = False

    @property
    def rank(self) -> int:
        return int(self.factors["down"].shape[0])

    def delta(self, weight: torch.Tensor) -> torch.Tensor:
        """The change of ``weight``, float32 on its device and of its shape.

        Raises ValueError if the factors do not fit.
        """
        f = {side: t.to(weight.device, torch.float32) for side, t in self.factors.items()}
        down, up = f["down"], f["up"]
        if "mid" in f:
            # LoCon's Tucker form: 1 x 1 down, k x k in the middle, 1 x 1 up.
            delta = torch.einsum("or,rskl,si->oikl", up.flatten(1), f["mid"], down.flatten(1))
        else:
            delta = up.flatten(1) @ down.flatten(1)
        if delta.numel() != weight.numel() or delta.shape[0] != weight.shape[0]:
            raise ValueError(f"changes {tuple(delta.shape)} values of {tuple(weight.shape)}")
        alpha = self.rank if self.alpha is None else self.alpha
        scale = alpha / (math.sqrt(self.rank) if self.root_rank else self.rank)
        return delta.reshape(weight.shape) * scale


def fuse_loras(
    bundle: ModelBundle, loras: Sequence[tuple[str, float]]
) -> tuple[str, dict[str, torch.Tensor]]:
    """Add the files' changes, each times its weight, to the bundle's layers.

    Return what was done, in words, and the textual inversions that the files bring, by word. The
    sum is made in float32 and rounded once. Raises ModelLoadError for a file that is no LoRA for
    this model, or that takes a weight beyond what half precision holds.
    """
    layers = _layers(bundle)
    changes: dict[str, list[tuple[str, float, LayerChange]]] = {}
    words = []
    learnt: dict[str, torch.Tensor] = {}
    for where, weight in loras:
        path = Path(where).expanduser()
        found = read_lora(path, layers)
        assumed = any(change.alpha is None for change in found.values())
        alpha = "; says no alpha, taken to be the rank" if assumed else ""
        words.append(f"{path.name} at {weight:g} ({len(found)} layers{alpha})")
        for layer, change in found.items():
            changes.setdefault(layer, []).append((str(path), weight, change))
        add_words(learnt, bundled_words(WeightsFile.open(path), bundle.text_width), path)
    modules = {f"unet.{name}": module for name, module in bundle.unet.named_modules()}
    modules |= {f"text_encoder.{name}": m for name, m in bundle.text_encoder.named_modules()}
    for layer, parts in changes.items():
        _fuse(modules[layer].weight, layer, parts)
    return ", ".join(words), learnt


def _fuse(
    parameter: torch.Tensor, layer: str, parts: Sequence[tuple[str, float, LayerChange]]
) -> None:
    """Add what the files change of one layer to its weight, in place. Raises ModelLoadError."""
    total = parameter.float()
    largest, culprit = -1.0, ""
    for origin, weight, change in parts:
        try:
            delta = weight * change.delta(parameter)
        except (ValueError, RuntimeError, IndexError) as error:
            raise ModelLoadError(
                f"{origin} is a LoRA for another architecture: {layer} {error}"
            ) from error
        size = float(delta.abs().max().nan_to_num(nan=math.inf))
        largest, culprit = max((largest, culprit), (size, f"{origin} at {weight:g}"))
        total = total + delta
    # No weight of a sound model comes near its end, whatever this one is loaded in.
    if not bool(torch.isfinite(total.half()).all()):
        raise ModelLoadError(
            f"{culprit} changes {layer} by {largest:.2g}, beyond half precision: the file is "
            "damaged, or needs a smaller weight"
        )
    parameter.copy_(total)


def read_lora(path: Path, layers: Mapping[str, str]) -> dict[str, LayerChange]:
    """The changes of a LoRA file by layer. ``layers`` maps what a file may call a layer to it.

    Raises ModelLoadError if it is no LoRA, or has anything that would be left out.
    """
    file = _open(path)
    changes: dict[str, LayerChange] = {}
    unknown = []
    for name, tensor in file.read(n for n in file.tensors if not is_bundled(n)):
        called, side = _split(name)
        layer = layers.get(_plain(called))
        if layer is None or not side:
            unknown.append(name)
            continue
        _check(file, name, side, tensor)
        if side == "alpha":
            changes.setdefault(layer, LayerChange()).alpha = float(tensor)
        else:
            changes.setdefault(layer, LayerChange()).factors[side] = tensor.clone()
    if unknown:
        raise ModelLoadError(
            f"{path} changes layers that this model does not have ({len(unknown)} tensors, such as "
            f"{sorted(unknown)[0]}): it was made for another architecture"
        )
    for layer, change in changes.items():
        if not {"up", "down"} <= change.factors.keys():
            raise ModelLoadError(f"{path} is incomplete: {layer} has not both its factors")
    _apply_scaling(file, changes)
    return changes


def _open(path: Path) -> WeightsFile:
    if not path.exists():
        raise ModelLoadError(f"there is no LoRA file {path}")
    file = WeightsFile.open(path)
    contents = identify(file)
    if contents is Contents.LYCORIS:
        raise ModelLoadError(
            f"{path} is {other_method(file.tensors)}, not a LoRA: {contents.advice}"
        )
    if contents is not Contents.LORA:
        raise ModelLoadError(f"{path} is {contents.words}, not a LoRA")
    if (model := other_model(file)) is not None:
        raise ModelLoadError(f"{path} is a LoRA for {model}, not for Stable Diffusion 1.x")
    return file


def _check(file: WeightsFile, name: str, side: str, tensor: torch.Tensor) -> None:
    """Raises ModelLoadError for a tensor that no trainer writes."""
    if not tensor.is_floating_point() and side != "alpha":
        raise ModelLoadError(f"{file.path}: {name} holds no floating point numbers")
    if not bool(torch.isfinite(tensor.float()).all()):
        raise ModelLoadError(f"{file.path}: {name} holds NaN or infinity: the file is damaged")
    if not (tensor.numel() == 1 if side == "alpha" else tensor.dim() > 1 and tensor.numel()):
        raise ModelLoadError(
            f"{file.path}: {name} has shape {tuple(tensor.shape)}: the file is damaged"
        )


def _split(name: str) -> tuple[str, str]:
    """(what the file calls the layer, ``down`` | ``up`` | ``mid`` | ``alpha`` or nothing)."""
    if name.endswith(".alpha"):
        return name.removesuffix(".alpha"), "alpha"
    found = _FACTOR.fullmatch(name)
    return (found["layer"], _SIDES[found["side"] or found["peft"]]) if found else (name, "")


def _plain(called: str) -> str:
    """A layer's name without what diffusers, peft and ComfyUI put around it."""
    called = called.replace(_PEFT, "").replace(".processor.", ".")
    called = called.removeprefix("model.").removeprefix("diffusion_model.")
    called = called.removesuffix(".lora").removesuffix("_lora").removesuffix(".lora_linear_layer")
    text = called.startswith("text_encoder.")
    attention = {"to_out": "out_proj", "to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj"}
    for theirs, of_text in attention.items():
        if called.endswith(f".{theirs}"):
            ours = of_text if text else {"to_out": "to_out.0"}.get(theirs, theirs)
            return called.removesuffix(theirs) + ours
    return called


def _layers(bundle: ModelBundle) -> dict[str, str]:
    """Every name that a file may have for a layer, to ``unet.NAME`` or ``text_encoder.NAME``.

    kohya's tools write dots as underscores, so names are looked up, never taken apart.
    """
    config = bundle.unet.config
    names: dict[str, str] = {}
    for name in _layers_of(bundle.unet):
        layer = f"unet.{name}"
        ldm = unet_name(name, int(config.layers_per_block), config.up_block_types)
        names[layer] = names[name] = names[ldm] = names[f"unet.{ldm}"] = layer
        names[f"lora_unet_{name.replace('.', '_')}"] = layer
        names[f"lora_unet_{ldm.replace('.', '_')}"] = layer
    for name in _layers_of(bundle.text_encoder):
        layer = f"text_encoder.{name}"
        plain = name.removeprefix("text_model.")
        underscored = plain.replace(".", "_")
        names[layer] = layer
        for prefix in _TEXT_PREFIXES:
            names[f"{prefix}text_model.{plain}"] = layer
        for prefix in ("lora_te_", "lora_te1_"):
            names[f"{prefix}text_model_{underscored}"] = names[f"{prefix}{underscored}"] = layer
    return names


def _layers_of(module: Any) -> list[str]:
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    return [name for name, m in module.named_modules() if isinstance(m, kinds)]


def _apply_scaling(file: WeightsFile, changes: Mapping[str, LayerChange]) -> None:
    """Apply what peft says of scaling beside the tensors. Ranks are those of the tensors."""
    said, where = _said_of_scaling(file)
    try:
        for layer, change in changes.items():
            part, _, name = layer.partition(".")
            # What peft may call it: a text encoder's layers had a longer path before.
            names = (name,) if part == "unet" else (name, f"text_model.{name}")
            if said.get(f"{part}.use_dora"):
                raise ModelLoadError(f"{file.path} is a DoRA, not a plain LoRA")
            change.root_rank = bool(said.get(f"{part}.use_rslora"))
            alpha = said.get(f"{part}.lora_alpha")
            for pattern, special in (said.get(f"{part}.alpha_pattern") or {}).items():
                if any(re.match(rf"(.*\.)?({pattern})$", each) for each in names):
                    alpha = special
                    break  # peft takes the first that matches
            if change.alpha is None and alpha is not None:
                change.alpha = _finite_number(alpha)
    except (ValueError, TypeError, AttributeError, OverflowError, re.error) as error:
        raise ModelLoadError(f"{where} is not usable: {error}") from error


def _said_of_scaling(file: WeightsFile) -> tuple[dict[str, Any], str]:
    """``unet.lora_alpha`` and so on, and where they are from: diffusers' metadata, or the
    ``adapter_config.json`` that peft writes beside a file. Raises ModelLoadError."""
    where = f"{file.path}: its lora_adapter_metadata"
    beside = file.path.parent / _PEFT_CONFIG
    if (text := file.metadata.get("lora_adapter_metadata")) is not None:
        try:
            return parse_object(text, "it"), where
        except ValueError as error:
            raise ModelLoadError(f"{where} is not usable: {error}") from error
    ours = file.path.name == _PEFT_FILE or any(name.startswith(_PEFT) for name in file.tensors)
    if ours and beside.is_file():
        config = read_object(beside)
        parts = ("unet", "text_encoder")
        return {f"{p}.{key}": value for p in parts for key, value in config.items()}, str(beside)
    return {}, where


def _finite_number(value: Any) -> float:
    """Raises TypeError, OverflowError or ValueError."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value} is no scale")
    return number
