"""Textual inversions: words that a prompt may use, each standing for vectors learnt for it.

Their vectors become rows of the text encoder's table after its own. The word itself is found in
the text by `pipelines.prompt.encoder`, so the tokenizer stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from models.bundle import ModelBundle
from models.clip_words import clip_normalized
from models.errors import ModelLoadError
from models.loading.identify import Contents, identify
from models.loading.weights_file import PICKLE_SUFFIXES, WeightsFile, refuse_pickle

_VECTORS = ("emb_params", "clip_l", "string_to_param.*")
"""Names of the vectors where the word stands elsewhere: in the file's name, or before them."""
_BUNDLED = "bundle_emb."
"""What begins the names of textual inversions that a LoRA brings: ``bundle_emb.WORD.emb_params``"""


def add_embeddings(
    bundle: ModelBundle, words: Mapping[str, torch.Tensor]
) -> dict[str, tuple[int, ...]]:
    """Add each word's vectors (n, width) to the bundle's text encoder.

    Return the rows of its table by word.
    """
    if not words:
        return {}
    table = bundle.text_encoder.get_input_embeddings()
    rows: dict[str, tuple[int, ...]] = {}
    first = table.weight.shape[0]
    for word, vectors in words.items():
        rows[word] = tuple(range(first, first + len(vectors)))
        first += len(vectors)
    joined = torch.cat([table.weight, *(v.to(table.weight) for v in words.values())])
    table.weight = torch.nn.Parameter(joined, requires_grad=False)
    table.num_embeddings = len(joined)
    return rows


def read_embeddings(folder: Path, width: int) -> dict[str, torch.Tensor]:
    """Word to vectors (n, width), of every file of the folder by name. Raises ModelLoadError.

    Words are as CLIP writes them.
    """
    if not folder.is_dir():
        raise ModelLoadError(f"IMG2IMG_EMBEDDINGS: {folder} is no folder")
    words: dict[str, torch.Tensor] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in PICKLE_SUFFIXES:
            refuse_pickle(path)
        if path.suffix.lower() == ".safetensors":
            add_words(words, _read(path, width), path)
    return words


def add_words(words: dict[str, torch.Tensor], more: Mapping[str, torch.Tensor], path: Path) -> None:
    """Put the words of the file ``path`` beside others. Raises ModelLoadError for one of those."""
    for word, vectors in more.items():
        if word in words:
            raise ModelLoadError(f"{path}: another file has the word {word!r} already")
        words[word] = vectors


def is_bundled(name: str) -> bool:
    """Return whether a tensor of a LoRA file belongs to a textual inversion."""
    return name.startswith(_BUNDLED)


def bundled_words(file: WeightsFile, width: int) -> dict[str, torch.Tensor]:
    """Return the textual inversions that a LoRA file brings, by word. Raises ModelLoadError."""
    return _words(file, [name for name in file.tensors if is_bundled(name)], width)


def _read(path: Path, width: int) -> dict[str, torch.Tensor]:
    file = WeightsFile.open(path)
    contents = identify(file)
    if contents is not Contents.EMBEDDING:
        raise ModelLoadError(f"{path} is {contents.words}, not a textual inversion")
    return _words(file, file.tensors, width)


def _words(file: WeightsFile, names: Iterable[str], width: int) -> dict[str, torch.Tensor]:
    words: dict[str, torch.Tensor] = {}
    for name, tensor in file.read(names):
        word = clip_normalized(_word(name, file.path))
        shape = tuple(tensor.shape)
        if not word.strip() or len(shape) not in (1, 2) or not tensor.numel():
            raise ModelLoadError(
                f"{file.path}: {name!r} of shape {shape} is no vector of a word: it is damaged"
            )
        if name.endswith("clip_g") or "clip_g" in file.tensors or shape[-1] != width:
            raise ModelLoadError(
                f"{file.path} is a textual inversion for another model: its vectors are "
                f"{shape[-1]} wide, the text encoder's {width}"
            )
        vectors = tensor.clone().reshape(-1, width)
        # Half precision, whatever this model is loaded in: no sound vector comes near its end.
        if not tensor.is_floating_point() or not bool(torch.isfinite(vectors.half()).all()):
            raise ModelLoadError(
                f"{file.path}: {name} holds NaN, infinity or what is beyond half precision: it is "
                "damaged"
            )
        add_words(words, {word: vectors}, file.path)
    return words


def _word(name: str, path: Path) -> str:
    """Return the word whose vectors a tensor holds."""
    if is_bundled(name):
        return name.removeprefix(_BUNDLED).removesuffix(_ending(name))
    return path.stem if name in _VECTORS else name


def _ending(name: str) -> str:
    return next((f".{vectors}" for vectors in _VECTORS if name.endswith(f".{vectors}")), "")
