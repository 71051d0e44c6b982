"""Kinds of TIFF that Pillow misreads or refuses: deep, floating point, Lab, planes, odd alpha.

libtiff only unpacks here: each group of strips or tiles is handed to it as grey of 8 bits, as wide
as a row has bytes. What the bytes mean is then said in numpy, some rows at a time.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

from server.images.files import tiff_layout as layouts
from server.images.files import tiff_tags as tags_of
from server.images.files.tiff_layout import COLOURS, FLOAT, ICC_LAB, LAB, SIGNED, UNSIGNED, Layout
from server.images.files.tiff_tags import Tags, TiffProblem, tiff_directory, tiff_head

_MODES = {1: "L", 3: "RGB", 4: "CMYK"}
_GROUP_BYTES = 1 << 20
"""Bytes of short strips that are unpacked at a time, and of rows that are converted."""

_BACKWARDS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))

Samples = npt.NDArray[np.generic]
"""(rows, width, samples) of the file's own type."""

RowsBetween = Callable[[int, int], npt.NDArray[np.uint8]]
"""From the first row to the one behind the last, to their bytes."""


def read_samples(data: bytes, tags: Tags, layout: Layout) -> tuple[Image.Image, Image.Image | None]:
    """Return the picture in mode L, RGB, CMYK or LAB, and its straight alpha in L if it has one.

    Raises TiffProblem, or OSError where the pixels are damaged.
    """
    layout.check_readable()
    colours = COLOURS[layout.photometric]
    lab = layout.photometric in (LAB, ICC_LAB)
    image = Image.new("LAB" if lab else _MODES[colours], (layout.width, layout.height))
    alpha_at = next((i for i, kind in enumerate(layout.extra) if kind in layouts.ALPHA_KINDS), None)
    premultiplied = alpha_at is not None and layout.extra[alpha_at] == layouts.ASSOCIATED
    alpha = None
    if alpha_at is not None and colours + alpha_at < layout.samples:
        alpha = Image.new("L", image.size)
    to_eight_bits = _scaling(data, tags, layout)
    for top, samples in _bands(data, tags, layout):
        values = to_eight_bits(samples[:, :, :colours])
        if alpha is not None and alpha_at is not None:
            at = colours + alpha_at
            opacity = to_eight_bits(samples[:, :, at : at + 1])
            alpha.paste(Image.fromarray(opacity[:, :, 0]), (0, top))
            if premultiplied:
                values = _straight(values, opacity)
        if layout.photometric == layouts.WHITE_IS_ZERO:
            values = 255 - values
        if layout.photometric == LAB:
            # a and b are signed; Pillow keeps them with an offset of 128.
            values = values ^ np.array([0, 128, 128], np.uint8)
        image.paste(_as_image(values, image.mode), (0, top))
    return image, alpha


def _as_image(values: npt.NDArray[np.uint8], mode: str) -> Image.Image:
    rows, width, colours = values.shape
    if colours == 1:
        return Image.fromarray(np.ascontiguousarray(values[:, :, 0]))
    if mode == "LAB":
        bands = [Image.fromarray(np.ascontiguousarray(values[:, :, i])) for i in range(3)]
        return Image.merge("LAB", bands)
    return Image.frombytes(mode, (width, rows), values.tobytes())


def _straight(
    values: npt.NDArray[np.uint8], opacity: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    scaled = values.astype(np.uint16) * 255 // np.maximum(opacity, 1)
    return np.minimum(scaled, 255).astype(np.uint8)


def _scaling(data: bytes, tags: Tags, layout: Layout) -> Callable[[Samples], npt.NDArray[np.uint8]]:
    """Return what makes 8 bits of samples, by the value that is white."""
    if layout.photometric in (LAB, ICC_LAB) and layout.bits == 16:
        return lambda samples: (samples.astype(np.uint16) >> 8).astype(np.uint8)
    if layout.sample_format == UNSIGNED and layout.bits <= 16:
        table = np.rint(np.arange(1 << layout.bits) * (255 / ((1 << layout.bits) - 1)))
        levels = table.astype(np.uint8)
        return lambda samples: levels[samples.astype(np.uint16)]
    white = float((1 << (layout.bits - 1)) - 1)
    if layout.sample_format == FLOAT or layout.bits == 32:
        # Such files do not say what is white: the least usual range that fits.
        ranges = {
            FLOAT: (1.0, 255.0, 65535.0),
            SIGNED: (65535.0, 2.0**31 - 1),
            UNSIGNED: (65535.0, 2.0**32 - 1),
        }[layout.sample_format]
        brightest = max(
            float(np.max(samples, initial=0, where=np.isfinite(samples)))
            for _, samples in _bands(data, tags, layout)
        )
        white = next((level for level in ranges if brightest <= level), brightest)

    def scale(samples: Samples) -> npt.NDArray[np.uint8]:
        with np.errstate(invalid="ignore"):  # of signalling NaN
            finite = np.nan_to_num(samples.astype(np.float64), posinf=white, neginf=0.0)
        return np.rint(np.clip(finite / white, 0.0, 1.0) * 255.0).astype(np.uint8)

    return scale


def _bands(data: bytes, tags: Tags, layout: Layout) -> Iterator[tuple[int, Samples]]:
    """Yield the samples of some rows at a time, from the top, with the number of the first row."""
    segments = layouts.segments_of(tags, layout)
    tiled, width, rows = segments.tiled, segments.width, segments.rows
    if width < 1 or rows < 1 or width * rows > 4 * layout.width * layout.height + (1 << 20):
        raise TiffProblem(f"the {'tiles' if tiled else 'strips'} of the TIFF have no sound size")
    segments.check_count()
    offsets, counts = segments.offsets, segments.counts
    planes, channels, row_bytes = segments.planes, segments.channels, segments.row_bytes
    across, down = segments.across, segments.down
    step = 1 if across > 1 else max(1, _GROUP_BYTES // (row_bytes * rows))
    for first in range(0, down, step):
        last = min(first + step, down)
        top = first * rows
        # Strips end with the picture, tiles go on behind it.
        height = (last - first) * rows if tiled else min(last * rows, layout.height) - top
        shown = min(last * rows, layout.height) - top
        unpacked = []
        for plane in range(planes):
            indices = range((plane * down + first) * across, (plane * down + last) * across)
            packed = [_segment(data, offsets, counts, index) for index in indices]
            unpacked.append(_unpack(packed, layout, row_bytes, rows, height * across))
        few = max(1, _GROUP_BYTES // (row_bytes * across * planes))
        for begin in range(0, shown, few):
            end = min(begin + few, shown)
            parts = []
            for rows_between in unpacked:
                # One tile after another.
                tiles = [
                    rows_between(at + begin, at + end) for at in range(0, height * across, height)
                ]
                samples = _as_samples(np.concatenate(tiles), layout, width, channels)
                side_by_side = samples.reshape(across, end - begin, width, channels)
                turned = side_by_side.transpose(1, 0, 2, 3)
                whole = turned.reshape(end - begin, across * width, channels)
                parts.append(whole[:, : layout.width])
            yield top + begin, parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)


def _segment(data: bytes, offsets: tuple[int, ...], counts: tuple[int, ...], index: int) -> bytes:
    end = offsets[index] + counts[index] if index < len(counts) else len(data)
    return data[offsets[index] : end]


def _unpack(
    packed: list[bytes], layout: Layout, row_bytes: int, rows: int, height: int
) -> RowsBetween:
    """Return what gives rows of `row_bytes` of the strips or tiles, one below another."""
    if layout.compression == layouts.UNCOMPRESSED:
        raw = b"".join(part[: row_bytes * rows] for part in packed)[: height * row_bytes]
        if len(raw) < height * row_bytes:
            raise OSError("the file ends before its pixels")
        raw = raw.translate(_BACKWARDS) if layout.backwards else raw
        plain = np.frombuffer(raw, np.uint8).reshape(height, row_bytes)
        return lambda begin, end: plain[begin:end]
    offsets, place = [], 8
    for part in packed:
        offsets.append(place)
        place += len(part)
    numbers = {
        tags_of.WIDTH: (row_bytes,),
        tags_of.HEIGHT: (height,),
        tags_of.BITS: (8,),
        tags_of.COMPRESSION: (layout.compression,),
        tags_of.PHOTOMETRIC: (layouts.BLACK_IS_ZERO,),
        tags_of.FILL_ORDER: (2 if layout.backwards else 1,),
        tags_of.STRIP_OFFSETS: tuple(offsets),
        tags_of.SAMPLES: (1,),
        tags_of.ROWS_PER_STRIP: (rows,),
        tags_of.STRIP_COUNTS: tuple(len(part) for part in packed),
    }
    place += place % 2
    pixels = b"".join(packed)
    directory = tiff_directory("<", place, numbers, {})
    head = tiff_head("<", place)
    grey = _grey_of(b"".join((head, pixels, b"\x00" * (len(pixels) % 2), directory)))
    # An array of the whole would be two more copies of what may be all of the picture.
    return lambda begin, end: np.asarray(grey.crop((0, begin, row_bytes, end)))


def _grey_of(file: bytes) -> Image.Image:
    # A row of bytes is longer than a row of pixels, so Pillow's own limit would be too low here.
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(io.BytesIO(file), formats=("TIFF",)) as image:
            image.load()
            return image
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _as_samples(rows: npt.NDArray[np.uint8], layout: Layout, width: int, channels: int) -> Samples:
    """Return `(height, width, channels)` samples of rows of bytes."""
    height = len(rows)
    if layout.bits not in (8, 16, 32, 64):
        return _unpack_bits(rows, layout.bits, width * channels).reshape(height, width, channels)
    size = layout.bits // 8
    kind = {UNSIGNED: "u", SIGNED: "i", FLOAT: "f"}[layout.sample_format]
    order = layout.order
    if layout.predictor == 3:
        # Differences of bytes; then first all the highest bytes of a row, down to the lowest.
        sums = np.cumsum(rows.reshape(height, -1, channels), axis=1, dtype=np.uint8)
        planes = sums.reshape(height, size, width * channels)
        rows = np.ascontiguousarray(planes.transpose(0, 2, 1)).reshape(height, -1)
        order = ">"
    samples = rows.view(np.dtype(f"{order}{kind}{size}")).reshape(height, width, channels)
    if layout.predictor == 2:
        whole = np.dtype(f"u{size}")
        samples = np.cumsum(
            samples.view(f"{order}u{size}").astype(whole), axis=1, dtype=whole
        ).view(f"{kind}{size}")
    return samples


def _unpack_bits(rows: npt.NDArray[np.uint8], bits: int, per_row: int) -> npt.NDArray[np.uint16]:
    """Return `(height, per_row)` samples of fewer than 16 bits, packed from the highest bit."""
    unpacked = np.unpackbits(rows, axis=1, count=per_row * bits)
    single = unpacked.reshape(len(rows), per_row, bits)
    padded = np.pad(single, ((0, 0), (0, 0), (16 - bits, 0)))
    return np.packbits(padded, axis=2).view(">u2")[:, :, 0].astype(np.uint16)
