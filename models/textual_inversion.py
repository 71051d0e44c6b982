"""Textual inversions: words that a prompt may use, each standing for vectors learnt for it.

Their vectors become rows of the text encoder's table after its own. The word itself is found in
the text by `pipelines.prompt`, so the tokenizer stays as it is.
"""

from __future__ import annotations

from pathlib import Path

import torch

from models.bundle import ModelBundle
from models.errors import ModelLoadError
from models.identify import Contents, identify
from models.weights_file import PICKLE_SUFFIXES, WeightsFile, refuse_pickle

_ONE_WORD = ("emb_params", "clip_l")
"""The name of the vectors where the word is the file's name."""


def add_embeddings(bundle: ModelBundle, folder: Path) -> dict[str, tuple[int, ...]]:
    """Add every file of ``folder`` to the bundle's text encoder: word to rows of its table.

    The words are lower case. Raises ModelLoadError.
    """
    words = read_embeddings(folder.expanduser(), bundle.text_width)
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
    """Word to vectors (n, width), of every file of the folder by name. Raises ModelLoadError."""
    if not folder.is_dir():
        raise ModelLoadError(f"IMG2IMG_EMBEDDINGS: {folder} is no folder")
    words: dict[str, torch.Tensor] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in PICKLE_SUFFIXES:
            refuse_pickle(path)
        if path.suffix.lower() != ".safetensors":
            continue
        for word, vectors in _read(path, width).items():
            if word in words:
                raise ModelLoadError(f"{path}: another file has the word {word!r} already")
            words[word] = vectors
    return words


def _read(path: Path, width: int) -> dict[str, torch.Tensor]:
    file = WeightsFile.open(path)
    contents = identify(file)
    if contents is not Contents.EMBEDDING:
        raise ModelLoadError(f"{path} is {contents.words}, not a textual inversion")
    words = {}
    for name, tensor in file.read(file.tensors):
        word = path.stem if name in _ONE_WORD else name
        vectors = tensor.clone().reshape(-1, tensor.shape[-1])
        if "clip_g" in file.tensors or vectors.shape[1] != width:
            raise ModelLoadError(
                f"{path} is a textual inversion for another model: its vectors are "
                f"{vectors.shape[1]} wide, the text encoder's {width}"
            )
        if not bool(torch.isfinite(vectors).all()):
            raise ModelLoadError(f"{path} holds NaN or infinity: it is damaged")
        words[word.lower()] = vectors
    return words
