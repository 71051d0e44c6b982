"""Reads safetensors files a few tensors at a time, and says what a file is that is none.

The library maps a file into memory, and what was read of a mapping stays in the process's memory
until the mapping goes. So a file is opened anew every ``_SPAN`` bytes: loading then needs little
more host memory than the largest tensor, besides what the caller keeps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from models.errors import ModelLoadError
from models.loading.json_files import parse_object

_SPAN = 64 * 2**20
_MAX_HEADER = 100 * 2**20
PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
_PICKLE = (
    "is a pickle, and a pickle can run code when it is read: "
    "use the .safetensors version of this file"
)


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's shape, and the bytes it takes in the file from ``begin`` on."""

    shape: tuple[int, ...]
    begin: int
    size: int


@dataclass(frozen=True, eq=False)
class WeightsFile:
    """A sound safetensors file: its tensors by name, and its metadata."""

    path: Path
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]

    @classmethod
    def open(cls, path: Path) -> WeightsFile:
        """Read the header. Raises ModelLoadError, which names what the file is instead."""
        refuse_pickle(path)
        try:
            with safe_open(path, framework="pt"):
                pass
            header = _header(path)
        except (SafetensorError, ValueError) as error:
            raise ModelLoadError(f"{path} {_what_is_wrong(path)} ({error})") from error
        except OSError as error:
            raise ModelLoadError(f"{path} cannot be read: {error}") from error
        metadata = header.pop("__metadata__", None) or {}
        tensors = {
            name: TensorInfo(
                tuple(entry["shape"]),
                entry["data_offsets"][0],
                entry["data_offsets"][1] - entry["data_offsets"][0],
            )
            for name, entry in header.items()
        }
        return cls(path, tensors, metadata)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.path.stat().st_size

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """The named tensors on the CPU, in the order of the file.

        A tensor may be a view of the mapped file: copy what is to stay, and keep no other.
        """
        wanted = sorted(names, key=lambda name: self.tensors[name].begin)
        while wanted:
            spent = 0
            with safe_open(self.path, framework="pt") as handle:
                while wanted and spent < _SPAN:
                    name = wanted.pop(0)
                    spent += self.tensors[name].size
                    yield name, handle.get_tensor(name)


def refuse_pickle(path: Path) -> None:
    """Raises ModelLoadError for a file whose name says that it is a pickle."""
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise ModelLoadError(f"{path} {_PICKLE}")


def _header(path: Path) -> dict[str, Any]:
    """The JSON header: https://github.com/huggingface/safetensors#format."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= _MAX_HEADER:
            raise ValueError("no safetensors header")
        return parse_object(file.read(length), "its header")


def _what_is_wrong(path: Path) -> str:
    """Return why the library does not read the file, in words for the operator."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        return "is empty: download it again"
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return _PICKLE
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the weights: run `git lfs pull`, or download the file"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "is a web page, not weights: the download needs a login or another address"
    if start.startswith(b"GGUF"):
        return "is a GGUF file: use the .safetensors version of this model"
    try:
        header = _header(path)
        entries = [entry for name, entry in header.items() if name != "__metadata__"]
        end = 8 + int.from_bytes(start[:8], "little")
        end += max(entry["data_offsets"][1] for entry in entries)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        length = int.from_bytes(start[:8], "little")
        if start[8:9] == b"{" and 8 + length > size:
            return f"is truncated within its header ({size:,} bytes): download it again"
        why = f", {error}" if isinstance(error, ValueError) and start[8:9] in (b"{", b"[") else ""
        return f"is corrupt{why} or no safetensors file: download it again"
    if size < end:
        return f"is truncated, {size:,} of {end:,} bytes: download it again"
    return "is corrupt: download it again"
