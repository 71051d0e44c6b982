"""Weights, wherever they are, to a `ModelBundle`.

Four sources: ``embedded`` (the small model that ships with the project), a local folder in
diffusers' layout, a hub id, which is fetched once and is then such a folder, and one file in the
original layout. Only safetensors are read: a pickle can run code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from models.acceleration.quantization import check_quantization, quantize_unet
from models.bundle import ModelBundle, downscale
from models.device import choose_device, choose_dtype, dtype_in_words
from models.errors import ModelLoadError
from models.loading import checkpoint
from models.loading.autoencoder import load_autoencoder
from models.loading.checkpoint import SD15_FOLDER
from models.loading.clip import load_beside
from models.loading.folder import check_layout, part_files, variants
from models.loading.hub import PINNED_REVISIONS
from models.loading.lora import fuse_loras
from models.loading.parts import (
    diffusers_vae_names,
    fill,
    make_text_encoder,
    make_unet,
    make_vae,
    transformers_text_names,
)
from models.loading.sources import EMBEDDED_FOLDER, resolve_model
from models.loading.textual_inversion import add_embeddings, add_words, read_embeddings
from models.noise_schedule import NoiseSchedule
from models.spec import EMBEDDED, ModelSpec, Prediction

__all__ = [
    "EMBEDDED",
    "EMBEDDED_FOLDER",
    "PINNED_REVISIONS",
    "ModelLoadError",
    "ModelSpec",
    "choose_device",
    "choose_dtype",
    "load_bundle",
    "load_folder",
    "load_model",
    "resolve_model",
]

_BY_SETTING, _BY_FOLDER = "IMG2IMG_PREDICTION", "the folder's scheduler"
_ZERO_SNR_BY_SETTING = "IMG2IMG_ZERO_TERMINAL_SNR"


def load_bundle(
    model: str = EMBEDDED,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
) -> ModelBundle:
    """Load ``model`` with nothing put in or beside it; see `load_model`."""
    return load_model(ModelSpec(model, revision), device=device, dtype=dtype)


def load_model(
    spec: ModelSpec,
    *,
    device: str = "auto",
    dtype: str = "auto",
    configuration: Path = SD15_FOLDER,
) -> ModelBundle:
    """Load what ``spec`` asks for.

    ``configuration`` is the folder that configures a single file and has its tokenizer. Raises
    ModelLoadError with a reason fit for the operator.
    """
    chosen_device = choose_device(device)
    chosen_dtype = choose_dtype(dtype, chosen_device)
    check_quantization(spec.quantize, chosen_device, chosen_dtype)
    name, path = resolve_model(spec, chosen_dtype)
    try:
        if path.is_dir():
            bundle = load_folder(
                path,
                name=name,
                device=chosen_device,
                dtype=chosen_dtype,
                vae=spec.vae,
                prediction=spec.prediction,
                zero_terminal_snr=spec.zero_terminal_snr,
            )
        else:
            bundle = load_checkpoint(
                path,
                spec,
                name=name,
                device=chosen_device,
                dtype=chosen_dtype,
                configuration=configuration,
            )
        if spec.preview_vae:
            bundle.preview_vae = _preview_vae(spec.preview_vae, bundle)
            bundle.facts["previews"] = f"AutoencoderTiny, {spec.preview_vae}"
        bundle.facts["dtype"] = dtype_in_words(dtype, chosen_device)
        words: dict[str, torch.Tensor] = {}
        if spec.loras:
            bundle.facts["loras"], words = fuse_loras(bundle, spec.loras)
        if spec.embeddings:
            folder = Path(spec.embeddings).expanduser()
            add_words(words, read_embeddings(folder, bundle.text_width), folder)
        if words or spec.embeddings:
            bundle = replace(bundle, embeddings=add_embeddings(bundle, words))
            bundle.facts["embeddings"] = ", ".join(bundle.embeddings) or "none in the folder"
        if spec.quantize != "off":
            # Last: LoRAs add to weights, which quantised ones cannot be.
            bundle.facts["quantized"] = quantize_unet(bundle.unet, spec.quantize, bundle.device)
    except torch.OutOfMemoryError as error:
        raise ModelLoadError(
            f"{name} does not fit into the memory of {chosen_device}: free some, "
            "or choose a smaller IMG2IMG_DTYPE"
        ) from error
    return bundle


def load_checkpoint(
    path: Path,
    spec: ModelSpec,
    *,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    configuration: Path = SD15_FOLDER,
) -> ModelBundle:
    """Load one file in the original layout. Raises ModelLoadError."""
    file = checkpoint.open_checkpoint(path)
    if spec.prediction == "auto":
        prediction, reason = checkpoint.prediction_of(file)
    else:
        prediction, reason = spec.prediction, _BY_SETTING
    known: dict[str, Any] = {"prediction_type": prediction}
    if spec.zero_terminal_snr or checkpoint.wants_zero_snr(file):
        known["rescale_betas_zero_snr"] = True
    zero_snr = _ZERO_SNR_BY_SETTING if spec.zero_terminal_snr else "the file's ztsnr mark"
    config = checkpoint.scheduler_config(configuration, **known)
    if spec.vae:
        vae, vae_from = _other_vae(spec.vae, configuration, device, dtype), spec.vae
    elif checkpoint.has_vae(file):
        vae, vae_from = checkpoint.load_vae(file, configuration, device=device, dtype=dtype), ""
    else:
        raise ModelLoadError(f"{path} has no VAE: name one with IMG2IMG_VAE")
    text_encoder = checkpoint.load_text_encoder(file, configuration, device=device, dtype=dtype)
    unet = checkpoint.load_unet(file, configuration, ema=spec.ema, device=device, dtype=dtype)
    facts = {
        "source": f"{path}, one file in the original layout",
        **_scheduler_facts(config, reason, zero_snr),
    }
    if checkpoint.has_ema(file):
        facts["unet"] = (
            "its averaged (EMA) copy" if spec.ema else "the trained one, not its EMA copy"
        )
    bundle = ModelBundle(
        name=name,
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=_tokenizer(configuration),
        scheduler_config=config,
        device=device,
        dtype=dtype,
        path=path,
        facts=facts | _vae_facts(vae, vae_from),
    )
    _check_architecture(bundle)
    return bundle


def load_folder(
    folder: Path,
    *,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    vae: str | None = None,
    prediction: Prediction = "auto",
    zero_terminal_snr: bool = False,
) -> ModelBundle:
    """Load a folder in diffusers' layout, with another VAE if named. Raises ModelLoadError."""
    check_layout(folder)
    known: dict[str, Any] = {} if prediction == "auto" else {"prediction_type": prediction}
    said_by = _BY_SETTING if known else _BY_FOLDER
    if zero_terminal_snr:
        known["rescale_betas_zero_snr"] = True
    config = checkpoint.scheduler_config(folder, **known)

    half: list[str] = []

    def filled(part: str, module: Any, names: Any) -> Any:
        files, what = part_files(folder / part, dtype), str(folder / part)
        if variants(file.path.name for file in files)[0]:
            half.append(part)
        return fill(module, files, names, device=device, dtype=dtype, what=what)

    if vae:
        autoencoder = _other_vae(vae, folder, device, dtype)
    else:
        autoencoder = filled("vae", make_vae(folder / "vae"), diffusers_vae_names)
    bundle = ModelBundle(
        name=name,
        unet=filled("unet", make_unet(folder / "unet"), lambda n: (n,)),
        vae=autoencoder,
        text_encoder=filled(
            "text_encoder", make_text_encoder(folder / "text_encoder"), transformers_text_names
        ),
        tokenizer=_tokenizer(folder),
        scheduler_config=config,
        device=device,
        dtype=dtype,
        path=folder,
        facts={
            "source": f"{folder}, a folder in diffusers' layout",
            **_scheduler_facts(
                config, said_by, _ZERO_SNR_BY_SETTING if zero_terminal_snr else _BY_FOLDER
            ),
        }
        | _vae_facts(autoencoder, vae or ""),
    )
    bundle.facts["weights"] = f"fp16 files of {', '.join(half)}" if half else "plain files"
    _check_architecture(bundle)
    if (folder / "clip").is_dir():
        bundle.clip = load_beside(folder / "clip", device, dtype, bundle.tokenizer, f"{name}'s own")
    return bundle


def _other_vae(where: str, configuration: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """The VAE that replaces the model's own, which must see pictures at the same scale."""
    vae = load_autoencoder(where, configuration, device=device, dtype=dtype)
    own = make_vae(configuration / "vae")
    if downscale(vae) != downscale(own):
        raise ModelLoadError(
            f"{where}: a latent of this VAE is {downscale(vae)} pixels wide, of the model "
            f"{downscale(own)}"
        )
    tiny = "AutoencoderTiny" in (type(vae).__name__, type(own).__name__)
    if not tiny and vae.config.scaling_factor != own.config.scaling_factor:
        raise ModelLoadError(
            f"{where} was made for another model: its scaling_factor is "
            f"{vae.config.scaling_factor}, of the model's own VAE {own.config.scaling_factor}"
        )
    return vae


def _preview_vae(where: str, bundle: ModelBundle) -> Any:
    """The tiny VAE that draws previews. Raises ModelLoadError."""
    vae = load_autoencoder(where, SD15_FOLDER, device=bundle.device, dtype=bundle.dtype)
    if type(vae).__name__ != "AutoencoderTiny":
        raise ModelLoadError(
            f"{where} is an {type(vae).__name__}, too slow for previews: name an AutoencoderTiny"
        )
    wanted, got = bundle.latent_channels, vae.config.latent_channels
    if wanted != got:
        raise ModelLoadError(f"{where} has latents of {got} channels, the model of {wanted}")
    return vae


def _scheduler_facts(config: Mapping[str, Any], prediction: str, zero_snr: str) -> dict[str, str]:
    """The facts of a noise schedule; the other two say by what its parts are known."""
    schedule = NoiseSchedule.from_config(config)
    facts = {"predicts": f"{schedule.prediction_type} ({prediction})"}
    if schedule.rescale_betas_zero_snr:
        facts["schedule"] = f"to zero terminal SNR ({zero_snr})"
    return facts


def _vae_facts(vae: Any, where: str) -> dict[str, str]:
    return {"vae": f"{type(vae).__name__}, {where or 'its own'}"}


def _tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    try:
        return CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    except Exception as error:  # whatever a library makes of a bad file
        raise ModelLoadError(f"{folder / 'tokenizer'} cannot be loaded: {error}") from error


def _check_text(bundle: ModelBundle) -> None:
    """Raises ModelLoadError for a tokenizer that is not the text encoder's."""
    tokenizer, rows = bundle.tokenizer, bundle.text_encoder.config.vocab_size
    if len(tokenizer) > rows:
        raise ModelLoadError(
            f"{bundle.path}: the tokenizer knows {len(tokenizer)} tokens, the text encoder {rows}"
        )
    try:
        length = bundle.text_length
    except (TypeError, ValueError):
        length = 0
    if length <= 2:
        raise ModelLoadError(
            f"{bundle.path}: the tokenizer's model_max_length is {tokenizer.model_max_length!r}, "
            "which leaves no room for a word between start and end"
        )


def _check_architecture(bundle: ModelBundle) -> None:
    _check_text(bundle)
    wanted, got = bundle.unet.config.cross_attention_dim, bundle.text_width
    if wanted != got:
        raise ModelLoadError(
            f"{bundle.path}: the U-Net reads text of width {wanted}, the text encoder gives {got}"
        )
    channels, latents = bundle.latent_channels, bundle.vae.config.latent_channels
    if channels != latents:
        raise ModelLoadError(
            f"{bundle.path}: the U-Net reads {channels} channels, the VAE's latents have "
            f"{latents}; inpainting and depth models are not for this"
        )
    for key in ("shift_factor", "latents_mean", "latents_std"):
        if value := bundle.vae.config.get(key):
            raise ModelLoadError(
                f"{bundle.facts['vae']}: its {key} is {value}; latents of Stable Diffusion 1.x "
                "are scaled by one factor alone"
            )
