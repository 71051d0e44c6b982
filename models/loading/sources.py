"""Where a model's weights are: the kinds of source, and what each makes of a `ModelSpec`."""

from __future__ import annotations

from dataclasses import fields
from enum import Enum
from pathlib import Path

import torch

from models.errors import ModelLoadError
from models.loading.hub import download, is_hub_id
from models.loading.weights_file import refuse_pickle
from models.spec import EMBEDDED, ModelSpec

EMBEDDED_FOLDER = Path(__file__).parents[1] / "embedded"

_EVERY_SOURCE = frozenset(
    {
        "model",
        "prediction",
        "zero_terminal_snr",
        "vae",
        "preview_vae",
        "loras",
        "embeddings",
        "quantize",
    }
)
_SETTINGS = {"revision": "IMG2IMG_MODEL_REVISION"}
"""Of fields whose setting is not ``IMG2IMG_`` and the field's name."""


class Source(Enum):
    """A kind of source: in words, and the fields of a `ModelSpec` that it alone reads."""

    EMBEDDED = ("the embedded model", frozenset[str]())
    FOLDER = ("a folder in diffusers' layout", frozenset[str]())
    HUB = ("a hub id", frozenset({"revision"}))
    FILE = ("one file", frozenset({"ema"}))

    @property
    def words(self) -> str:
        return self.value[0]

    def check(self, spec: ModelSpec) -> None:
        """Raises ModelLoadError for what is set and does nothing here."""
        for field in fields(spec):
            if field.name in _EVERY_SOURCE or field.name in self.value[1]:
                continue
            if getattr(spec, field.name) != field.default:
                setting = _SETTINGS.get(field.name, f"IMG2IMG_{field.name.upper()}")
                readers = [s.words for s in Source if field.name in s.value[1]]
                raise ModelLoadError(
                    f"{spec.model} is {self.words}, for which {setting} does nothing: it is for "
                    f"{' or '.join(readers)}; leave it unset"
                )


def source_of(spec: ModelSpec) -> Source:
    """Return what the spec's model is. Raises ModelLoadError where it is nothing."""
    if spec.model == EMBEDDED:
        return Source.EMBEDDED
    path = Path(spec.model).expanduser()
    if path.is_dir():
        return Source.FOLDER
    refuse_pickle(path)
    if path.exists():
        return Source.FILE
    if path.suffix.lower() == ".safetensors":
        raise ModelLoadError(f"there is no file {spec.model}")
    if not is_hub_id(spec.model):
        raise ModelLoadError(
            f"model {spec.model!r} is neither 'embedded', nor a folder or file that exists, "
            "nor a hub id such as 'stable-diffusion-v1-5/stable-diffusion-v1-5'"
        )
    return Source.HUB


def resolve_model(spec: ModelSpec, dtype: torch.dtype = torch.float32) -> tuple[str, Path]:
    """(name, local folder or file) of a model. A hub id is downloaded if it is not there yet.

    Raises ModelLoadError, also for what is set and does nothing for such a source.
    """
    source = source_of(spec)
    source.check(spec)
    path = Path(spec.model).expanduser()
    match source:
        case Source.EMBEDDED:
            return EMBEDDED, EMBEDDED_FOLDER
        case Source.FOLDER:
            return path.resolve().name, path
        case Source.FILE:
            return path.stem, path
        case Source.HUB:
            return spec.model, download(spec.model, spec.revision, dtype)
