"""The layout of a TIFF's samples, in words too, and the kinds that are not left to Pillow."""

from __future__ import annotations

import math
from dataclasses import dataclass

from server.images.files import tiff_tags as tags_of
from server.images.files.tiff_tags import TRUNCATED, Tags, TiffProblem

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, LAB, ICC_LAB = 0, 1, 2, 3, 5, 6, 8, 9
COLOURS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, CMYK: 4, LAB: 3, ICC_LAB: 3}
"""Samples of a pixel without the extra ones, by the kind of colour that is read here."""

_NAMES = {WHITE_IS_ZERO: "grey", BLACK_IS_ZERO: "grey", RGB: "RGB", PALETTE: "palette"}
_NAMES |= {CMYK: "CMYK", YCBCR: "YCbCr", LAB: "Lab", ICC_LAB: "Lab", 10: "Lab", 4: "mask"}
_NAMES |= {32803: "camera raw", 34892: "camera raw", 32844: "LogL", 32845: "LogLuv"}

UNCOMPRESSED, _OLD_JPEG = 1, 6
_COMPRESSIONS = {2: "CCITT", 3: "CCITT", 4: "CCITT", 5: "LZW", 6: "old JPEG", 7: "JPEG"}
_COMPRESSIONS |= {8: "deflate", 32773: "PackBits", 32946: "deflate", 34712: "JPEG 2000"}
_COMPRESSIONS |= {34887: "LERC", 34925: "LZMA", 50000: "Zstandard", 50001: "WebP"}
_LOSSLESS = (UNCOMPRESSED, 5, 8, 32773, 32946, 34925, 50000)
_PREDICTING = (5, 8, 32946, 34925, 50000)

UNSIGNED, SIGNED, FLOAT = 1, 2, 3
_FORMATS = {UNSIGNED: "", SIGNED: "signed ", FLOAT: "floating-point "}
_UNTYPED = 4

ALPHA_KINDS = ASSOCIATED, _STRAIGHT = 1, 2
_SEPARATE = 2
_MOST_SAMPLES = 32


@dataclass(frozen=True)
class Layout:
    """The layout of the samples of a TIFF."""

    order: str
    width: int
    height: int
    bits: int
    samples: int
    photometric: int
    compression: int
    predictor: int
    sample_format: int
    extra: tuple[int, ...]
    separate: bool
    backwards: bool
    mixed: bool

    @property
    def in_words(self) -> str:
        """The kind of TIFF, for a message."""
        colour = _NAMES.get(self.photometric, f"photometric {self.photometric}")
        depth = f"{self.bits}-bit {_FORMATS.get(self.sample_format, 'complex ')}{colour}"
        extra = " with alpha" if set(self.extra) & set(ALPHA_KINDS) else ""
        packed = ""
        if self.compression != UNCOMPRESSED:
            name = _COMPRESSIONS.get(self.compression, f"unknown ({self.compression})")
            packed = f" under {name} compression"
        return f"{'mixed ' if self.mixed else ''}{depth} TIFF{extra}{packed}"

    @property
    def is_rare(self) -> bool:
        """Return whether the samples are read here, not by Pillow."""
        if self.photometric in (LAB, ICC_LAB) or self.sample_format == FLOAT:
            return True
        if self.photometric == PALETTE and self.bits == 8 and len(self.extra) <= 1:
            return False
        if self.sample_format == SIGNED and self.bits == 8 and self.photometric in COLOURS:
            return True
        odd_alpha = bool(self.extra) and self.photometric != RGB
        narrow = self.bits < 8 and self.samples > 1
        return self.bits > 8 or odd_alpha or narrow or len(self.extra) > 1

    def check_readable(self) -> None:
        """Raise TiffProblem, naming the kind, if the samples cannot be read here."""
        colours = COLOURS.get(self.photometric, 0)
        depths = {
            UNSIGNED: (*range(1, 17), 32),
            SIGNED: (8, 16, 32),
            FLOAT: (16, 32, 64),
        }.get(self.sample_format, ())
        if self.photometric in (LAB, ICC_LAB):
            depths = (8, 16) if self.sample_format == UNSIGNED else ()
        predictors = (1, 3) if self.sample_format == FLOAT else (1, 2)
        if (
            self.mixed
            or not colours <= self.samples <= _MOST_SAMPLES
            or not colours
            or self.bits not in depths
            or self.compression not in _LOSSLESS
            or self.predictor not in predictors
            or (self.predictor == 2 and self.bits not in (8, 16, 32))
        ):
            raise TiffProblem(f"{self.in_words} is not supported")


def layout_of(tags: Tags) -> Layout:
    """Return how the samples are stored. Raises TiffProblem where the file says no size."""
    width, height = tags.size
    samples = tags.number(tags_of.SAMPLES, 1)
    photometric = tags.number(tags_of.PHOTOMETRIC, 0)
    bits = tags.numbers.get(tags_of.BITS, (1,))
    formats = tags.numbers.get(tags_of.SAMPLE_FORMAT, (1,))
    extra = tags.numbers.get(tags_of.EXTRA_SAMPLES, ())
    compression = tags.number(tags_of.COMPRESSION, UNCOMPRESSED)
    return Layout(
        order=tags.order,
        width=width,
        height=height,
        bits=bits[0],
        samples=samples,
        photometric=photometric,
        compression=compression,
        # Only these know predictors.
        predictor=tags.number(tags_of.PREDICTOR, 1) if compression in _PREDICTING else 1,
        # Without a format samples are whole numbers.
        sample_format=UNSIGNED if formats[0] == _UNTYPED else formats[0],
        extra=extra,
        separate=tags.number(tags_of.PLANAR, 1) == _SEPARATE and samples > 1,
        backwards=tags.number(tags_of.FILL_ORDER, 1) == 2,
        mixed=len(set(bits[:samples])) > 1 or len(set(formats[:samples])) > 1,
    )


@dataclass(frozen=True)
class Segments:
    """The strips or tiles of a TIFF, ``planes`` x ``down`` x ``across`` of them in that order.

    A picture without tiles has one column of strips. ``width`` and ``rows`` are a segment's, and a
    row of it has ``row_bytes``, of as many ``channels``, before it is packed.
    """

    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    tiled: bool
    width: int
    rows: int
    planes: int
    channels: int
    row_bytes: int
    across: int
    down: int

    def check_count(self) -> None:
        """Raise TiffProblem where there are too few for the picture."""
        if len(self.offsets) < self.planes * self.across * self.down:
            raise TiffProblem(TRUNCATED)


def segments_of(tags: Tags, layout: Layout) -> Segments:
    """Return where the samples are, as far as the file says: sizes may be 0, offsets too few."""
    tiled = tags_of.TILE_OFFSETS in tags.numbers
    names = (tags_of.TILE_OFFSETS, tags_of.TILE_COUNTS) if tiled else ()
    offsets_tag, counts_tag = names or (tags_of.STRIP_OFFSETS, tags_of.STRIP_COUNTS)
    width = tags.number(tags_of.TILE_WIDTH, 0) if tiled else layout.width
    rows = tags.number(tags_of.TILE_HEIGHT if tiled else tags_of.ROWS_PER_STRIP, layout.height)
    if not tiled:
        rows = min(rows, layout.height)
    channels, planes = (1, layout.samples) if layout.separate else (layout.samples, 1)
    return Segments(
        offsets=tags.numbers.get(offsets_tag, ()),
        counts=tags.numbers.get(counts_tag, ()),
        tiled=tiled,
        width=width,
        rows=rows,
        planes=planes,
        channels=channels,
        row_bytes=math.ceil(width * channels * layout.bits / 8),
        across=math.ceil(layout.width / max(1, width)),
        down=math.ceil(layout.height / max(1, rows)),
    )


def check_complete(tags: Tags, layout: Layout, file_bytes: int) -> None:
    """Raise TiffProblem where a strip or tile reaches past the end of the file.

    What a reader is given has a directory of ours there, which would be read as pixels.
    """
    if layout.compression == _OLD_JPEG:
        return  # Its strips are seldom what they say, and its reader finds its own way.
    segments = segments_of(tags, layout)
    segments.check_count()
    rows = max(1, segments.rows)
    for place, offset in enumerate(segments.offsets):
        need = segments.counts[place] if place < len(segments.counts) else 0
        if layout.compression == UNCOMPRESSED:
            # Some writers give a last strip that ends with the picture a whole one's count.
            below = layout.height - place % segments.down * rows
            there = rows if segments.tiled else min(rows, below)
            need = min(need or segments.row_bytes * there, segments.row_bytes * there)
        if offset + need > file_bytes:
            raise TiffProblem(TRUNCATED)
