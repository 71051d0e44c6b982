"""TIFF files written sample by sample, of kinds that Pillow does not write."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Tags = dict[int, tuple[int, Sequence[int]]]
"""(type, values) by number of a tag; types 3 and 4 are of 2 and 4 bytes, 1 of one."""

_FORMATS = {1: "B", 3: "H", 4: "I"}
OFFSETS, COUNTS, TILE_OFFSETS, TILE_COUNTS = 273, 279, 324, 325


def tiff_file(tags: Tags, segments: Sequence[bytes], order: str = "<", big: bool = False) -> bytes:
    """A file of strips, or of tiles where the tags say their size."""
    head_size = 16 if big else 8
    offsets = [head_size + sum(map(len, segments[:n])) for n in range(len(segments))]
    tiled = 322 in tags
    tags = {
        **tags,
        (TILE_OFFSETS if tiled else OFFSETS): (4, offsets),
        (TILE_COUNTS if tiled else COUNTS): (4, [len(part) for part in segments]),
    }
    pixels = b"".join(segments)
    pixels += b"\x00" * (len(pixels) % 2)
    at = head_size + len(pixels)
    entry, room, word, count_word = (20, 8, "Q", "Q") if big else (12, 4, "I", "H")
    behind_at = at + struct.calcsize(count_word) + entry * len(tags) + room
    rows, behind = b"", b""
    for tag in sorted(tags):
        kind, values = tags[tag]
        packed = struct.pack(f"{order}{len(values)}{_FORMATS[kind]}", *values)
        rows += struct.pack(f"{order}HH{word}", tag, kind, len(values))
        if len(packed) <= room:
            rows += packed.ljust(room, b"\x00")
        else:
            rows += struct.pack(order + word, behind_at + len(behind))
            behind += packed + b"\x00" * (len(packed) % 2)
    mark = b"II" if order == "<" else b"MM"
    head = mark + (
        struct.pack(order + "HHHQ", 43, 8, 0, at) if big else struct.pack(order + "HI", 42, at)
    )
    return head + pixels + struct.pack(order + count_word, len(tags)) + rows + bytes(room) + behind


def tiff_of(
    samples: npt.NDArray[np.generic],
    photometric: int,
    *,
    order: str = "<",
    bits: int = 0,
    extra: Sequence[int] = (),
    separate: bool = False,
    compression: int = 1,
    predictor: int = 1,
    rows_per_strip: int = 0,
    tile: tuple[int, int] | None = None,
    orientation: int = 1,
    backwards: bool = False,
    big: bool = False,
    tags: Tags | None = None,
) -> bytes:
    """A TIFF of `(height, width, samples)`, of the array's own type or of whole numbers of
    ``bits``. ``compression`` is 1 for none or 8 for deflate; ``tile`` is (width, height)."""
    height, width, count = samples.shape
    bits = bits or samples.dtype.itemsize * 8
    formats = {"u": 1, "i": 2, "f": 3}
    entries: Tags = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [bits] * count),
        259: (3, [compression]),
        262: (3, [photometric]),
        266: (3, [2 if backwards else 1]),
        274: (3, [orientation]),
        277: (3, [count]),
        284: (3, [2 if separate else 1]),
        317: (3, [predictor]),
        339: (3, [formats[samples.dtype.kind]] * count),
        **(tags or {}),
    }
    if extra:
        entries[338] = (3, list(extra))
    planes = np.split(samples, count, axis=2) if separate else [samples]
    parts: list[npt.NDArray[np.generic]] = []
    if tile is None:
        rows = rows_per_strip or height
        entries[278] = (4, [rows])
        parts = [plane[top : top + rows] for plane in planes for top in range(0, height, rows)]
    else:
        entries |= {322: (4, [tile[0]]), 323: (4, [tile[1]])}
        for plane in planes:
            for top in range(0, height, tile[1]):
                for left in range(0, width, tile[0]):
                    part = plane[top : top + tile[1], left : left + tile[0]]
                    room = ((0, tile[1] - part.shape[0]), (0, tile[0] - part.shape[1]), (0, 0))
                    parts.append(np.pad(part, room))
    segments = [_packed(part, bits, order, predictor) for part in parts]
    if backwards:
        segments = [bytes(int(f"{b:08b}"[::-1], 2) for b in segment) for segment in segments]
    if compression == 8:
        segments = [zlib.compress(segment) for segment in segments]
    return tiff_file(entries, segments, order, big)


def _packed(part: npt.NDArray[np.generic], bits: int, order: str, predictor: int) -> bytes:
    height, width, count = part.shape
    if bits != part.dtype.itemsize * 8:
        whole = part.astype(">u4").reshape(height, -1, 1).view(np.uint8)
        single = np.unpackbits(whole.reshape(height, -1, 4), axis=2)[:, :, 32 - bits :]
        return np.packbits(single.reshape(height, -1), axis=1).tobytes()
    if predictor == 2:
        part = np.concatenate([part[:, :1], part[:, 1:] - part[:, :-1]], axis=1)
    if predictor == 3:
        size = part.dtype.itemsize
        highest_first = part.astype(part.dtype.newbyteorder(">")).tobytes()
        split = np.frombuffer(highest_first, np.uint8).reshape(height, width * count, size)
        flat = split.transpose(0, 2, 1).reshape(height, -1, count)
        return np.concatenate([flat[:, :1], flat[:, 1:] - flat[:, :-1]], axis=1).tobytes()
    return part.astype(part.dtype.newbyteorder(order)).tobytes()
