"""Upload bytes to an upright sRGB picture of the size asked for, and a picture to a PNG file.

All of it is plain blocking code. Files are first reduced to what bears on their pixels
(`png_chunks`, `jpeg_segments`, `webp_chunks`, `tiff_tags`): nothing that only decorates a picture
reaches its decoder. A server calls it in a process of its own, by `server.images.workers.pool`.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
    features,
)

from pipelines.request import MAX_SIDE, Pixels
from server.errors import ImageError
from server.images.color import Raster, shrunk_size, to_srgb
from server.images.files import jpeg as jpeg_segments
from server.images.files import png as png_chunks
from server.images.files import tiff_layout, tiff_samples, tiff_tags
from server.images.files import webp as webp_chunks
from server.images.fit import ResizeMode, fit_image, fit_size
from server.images.orientation import SIDEWAYS, orientation_of, turned_upright

try:
    import pillow_heif
except ImportError:
    _HEIF_AVAILABLE = False
else:
    # Threads have stacks and heaps of their own: memory that no bound foresees.
    pillow_heif.options.DECODE_THREADS = 1
    pillow_heif.register_heif_opener()
    _HEIF_AVAILABLE = True

MAX_PIXELS = 100_000_000

# Pillow warns above the limit and refuses above twice it; the warning is made a refusal too.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.simplefilter("error", Image.DecompressionBombWarning)
# What it remarks about damaged uploads is of no use to the operator.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

FORMATS = (
    "PNG",
    "JPEG",
    "WEBP",
    "GIF",
    "TIFF",
    "BMP",
    *(("AVIF",) if features.check("avif") else ()),
    *(("HEIF",) if _HEIF_AVAILABLE else ()),
)

_PLUGINS = (BmpImagePlugin, GifImagePlugin, JpegImagePlugin, TiffImagePlugin, WebPImagePlugin)
"""Imported by name, so that Pillow does not import all of its plugins."""

_ENOUGH_SIDE = 2 * MAX_SIDE
"""A picture whose both sides are at least twice this is scaled down while it is converted."""

_EXIF_ITEM = re.compile(rb"(infe[\x02\x03]...(?:..|....)..)Exif", re.DOTALL)
"""The place where AVIF and HEIF say that an item is EXIF. These pictures are turned by other
boxes, which win, so that the item is no loss and its oddities none either."""

_PNG_COMPRESSION = 6
_CORRUPT = "the picture is truncated or corrupt"

OnSize = Callable[[int], None]
"""Called with the number of pixels as soon as it is known, before they are decoded."""


@dataclass
class _File:
    """An upload as Pillow is given it, and all that was read beside it."""

    data: bytes
    kind: str
    profile: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    key: tuple[int, ...] | None = None
    key_bits: int = 8
    canvas: tuple[int, int] | None = None
    offset: tuple[int, int] = (0, 0)
    png: png_chunks.Png | None = None


def prepare_image(
    data: bytes | bytearray,
    width: int | None,
    height: int | None,
    mode: ResizeMode,
    auto_sizes: Sequence[tuple[int, int]] = (),
    on_size: OnSize = lambda _: None,
) -> Pixels:
    """Return the upload as pixels of the size to make, `(height, width, 3)` uint8.

    Raises ImageError.
    """
    picture, size = _decode(bytes(data), on_size)
    target = fit_size(size, width, height, auto_sizes)
    # A copy, since tensors are not made of read-only arrays.
    return np.array(fit_image(picture, *target, mode))


def decode_image(data: bytes | bytearray, on_size: OnSize = lambda _: None) -> Image.Image:
    """Return the upload's first frame, upright, in sRGB, mode RGB, alpha laid on white.

    Where both sides are far above what can be asked for, the picture is scaled down on the way, to
    bound memory. Raises ImageError.
    """
    return _decode(bytes(data), on_size)[0]


def decode_with_opacity(
    data: bytes | bytearray,
    most_pixels: int,
    on_size: OnSize = lambda _: None,
    *,
    shrinks: bool = True,
) -> Pixels:
    """Return the upload upright at its own size, `(height, width, 4)` uint8.

    Three channels are its sRGB, laid on white, and the fourth its opacity: 255 where the file has
    no alpha. One of more than ``most_pixels`` is made smaller if it ``shrinks``. Raises ImageError.
    """
    raster, size, orientation = _read(bytes(data), on_size)
    if not shrinks and size[0] * size[1] > most_pixels:
        width, height = size[::-1] if orientation in SIDEWAYS else size
        raise ImageError(
            f"{width} x {height} is over {most_pixels} pixels, the most of an image that is "
            "answered at its own size"
        )
    factor = _shrink_factor(raster)
    opacity = Image.new("L", shrunk_size(raster.image.size, factor), 255)
    image = to_srgb(raster, factor, opacity)
    image.putalpha(opacity)
    image = turned_upright(image, orientation)
    scale = math.sqrt(most_pixels / (image.width * image.height))
    if scale < 1:
        smaller = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
        # Its colour is on white already, so that it needs no weighting by its alpha.
        bands = [b.resize(smaller, Image.Resampling.LANCZOS) for b in image.split()]
        image = Image.merge("RGBA", bands)
    return np.array(image)


def _decode(data: bytes, on_size: OnSize) -> tuple[Image.Image, tuple[int, int]]:
    """Return the picture, and the upright size it has in the file."""
    raster, size, orientation = _read(data, on_size)
    if orientation in SIDEWAYS:
        size = size[::-1]
    return turned_upright(to_srgb(raster, _shrink_factor(raster)), orientation), size


def _read(data: bytes, on_size: OnSize) -> tuple[Raster, tuple[int, int], int]:
    """Return the pixels, the size in the file and the orientation."""
    if not data:
        raise ImageError("the file is empty")
    if tiff_tags.is_tiff(data):
        return _decode_tiff(data, on_size)
    return _decode_file(_reduced(data), on_size)


def _shrink_factor(raster: Raster) -> int:
    return max(1, min(raster.image.size) // _ENOUGH_SIDE)


def _reduced(data: bytes) -> _File:
    """Return the part of a file that its decoder is given. Raises ImageError."""
    if data.startswith(png_chunks.SIGNATURE):
        try:
            png = png_chunks.read_png(data)
        except png_chunks.PngProblem as problem:
            raise ImageError(f"the picture is corrupt: {problem}") from None
        key = png.key
        if key and png.bit_depth < 8:
            # Pillow scales grey of few bits to 0..255.
            key = (key[0] * 255 // ((1 << png.bit_depth) - 1),)
        return _File(png.data, "PNG", png.profile, png.exif, png.xmp, key, png.bit_depth, png=png)
    if data.startswith(jpeg_segments.SIGNATURE):
        jpeg = jpeg_segments.read_jpeg(data)
        return _File(jpeg.data, "JPEG", jpeg.profile, jpeg.exif, jpeg.xmp)
    if webp_chunks.is_webp(data):
        webp = webp_chunks.read_webp(data)
        if webp is None:
            raise ImageError(_CORRUPT)
        _check_size(webp.canvas)
        return _File(
            *(webp.data, "WEBP", webp.profile, webp.exif, webp.xmp),
            canvas=webp.canvas,
            offset=webp.offset,
        )
    if data[4:8] == b"ftyp":
        return _File(_EXIF_ITEM.sub(rb"\1free", data), "AVIF or HEIF")
    return _File(data, "GIF" if data[:4] == b"GIF8" else "BMP" if data[:2] == b"BM" else "")


def _decode_file(file: _File, on_size: OnSize) -> tuple[Raster, tuple[int, int], int]:
    """Return the pixels, the size in the file and the orientation."""
    if file.canvas is not None:
        on_size(file.canvas[0] * file.canvas[1])  # Pillow takes memory for it as it opens it.
    opened = _open(file.data, file.kind)
    size = file.canvas or opened.size
    on_size(size[0] * size[1])
    if file.png is not None and not file.png.is_whole:
        raise ImageError(_CORRUPT)
    profile = file.profile or opened.info.get("icc_profile")
    exif = file.exif or opened.info.get("exif")
    orientation = orientation_of(exif, file.xmp or opened.info.get("xmp"))
    raster = Raster(opened, key=file.key, profile=profile)
    box = opened.tile[0].extents if isinstance(opened, GifImagePlugin.GifImageFile) else None
    if opened.format == "WEBP":
        raster.image = _load_webp(opened)
    else:
        _load(opened)
    if opened.format == "PNG" and file.key_bits == 16 and len(file.key or ()) == 3:
        raster.low_bytes = _low_bytes(file.data)
    elif opened.format == "BMP" and opened.mode == "RGBA":
        if opened.getchannel("A").getextrema() == (0, 0):
            # The format has a mask for alpha and the writer left it empty.
            raster.image = opened.convert("RGB")
    elif opened.format == "WEBP":
        raster.image = _on_canvas(raster.image, size, file.offset)
    elif box is not None and box != (0, 0, *size):
        raster.image = _on_canvas(opened.crop(box).convert("RGBA"), size, box[:2])
    return raster, size, orientation


def _decode_tiff(data: bytes, on_size: OnSize) -> tuple[Raster, tuple[int, int], int]:
    try:
        tags = tiff_tags.read_tags(data)
        layout = tiff_layout.layout_of(tags)
        _check_size(tags.size)
        on_size(tags.size[0] * tags.size[1])
        orientation = tags.number(tiff_tags.ORIENTATION, 0) or orientation_of(None, tags.xmp)
        if layout.is_rare:
            raster = Raster(*_rare_samples(data, tags, layout), profile=tags.profile)
        else:
            tiff_layout.check_complete(tags, layout, len(data))
            opened = _open(tiff_tags.clean_file(data, tags), layout.in_words)
            _load(opened)
            raster = Raster(opened, profile=tags.profile)
    except tiff_tags.TiffProblem as problem:
        raise ImageError(str(problem)) from None
    return raster, raster.image.size, orientation


def _open(data: bytes, kind: str) -> Image.Image:
    try:
        opened = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(_too_many_pixels()) from None
    except MemoryError:
        raise
    except Exception as error:
        if isinstance(error, UnidentifiedImageError) and not kind:
            names = ", ".join(FORMATS)
            raise ImageError(f"the file is no picture in a known format ({names})") from None
        unsupported = f", or this kind of {kind} is not supported" if kind else ""
        raise ImageError(f"the picture is corrupt{unsupported}") from None
    _check_size(opened.size)
    return opened


def _check_size(size: tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise ImageError(_too_many_pixels())
    if min(size) < 1:
        raise ImageError("the picture has no pixels")


def _too_many_pixels() -> str:
    return f"the picture has over {MAX_PIXELS // 10**6} megapixels"


def _load(opened: Image.Image) -> None:
    """Decode the pixels. Raises ImageError."""
    # Decoders raise all sorts of exceptions on hostile bytes, so everything is caught here, and
    # the conversion afterwards, which works on sound pixels, is not.
    try:
        if opened.format == "JPEG":
            opened.draft(None, (min(_ENOUGH_SIDE, opened.width), min(_ENOUGH_SIDE, opened.height)))
        opened.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(_too_many_pixels()) from None
    except MemoryError:
        raise
    except Exception:
        raise ImageError(_CORRUPT) from None
    # Where a plugin has a decoder of its own, that holds the pixels once more.
    vars(opened).pop("_decoder", None)


def _load_webp(opened: Image.Image) -> Image.Image:
    """Return the pixels of the only frame. Raises ImageError.

    Pillow would keep three copies of them at a time beside the one that it returns.
    """
    decoder = vars(opened).pop("_decoder")
    try:
        frame = decoder.get_next()
    except OSError:
        frame = None
    if frame is None:
        raise ImageError(_CORRUPT)
    del decoder
    mode = "RGBA" if opened.mode == "RGBA" else "RGBX"
    return Image.frombuffer(mode, opened.size, frame[0], "raw", mode, 0, 1)


def _rare_samples(
    data: bytes, tags: tiff_tags.Tags, layout: tiff_layout.Layout
) -> tuple[Image.Image, Image.Image | None]:
    try:
        return tiff_samples.read_samples(data, tags, layout)
    except (tiff_tags.TiffProblem, MemoryError):
        raise
    except Exception:
        raise ImageError(_CORRUPT) from None


def _low_bytes(png: bytes) -> Image.Image:
    """Return the lower halves of 16-bit samples, whose upper ones are all that Pillow gives."""
    opened = _open(png, "PNG")
    assert isinstance(opened, PngImagePlugin.PngImageFile)
    # The same unpacker for the other byte order takes the other byte.
    opened.tile = [opened.tile[0]._replace(args="RGB;16L")]
    _load(opened)
    return opened


def _on_canvas(frame: Image.Image, size: tuple[int, int], offset: tuple[int, int]) -> Image.Image:
    """Return a frame on its screen, which is transparent around it."""
    if frame.size == size:
        return frame
    canvas = Image.new("RGBA", size)
    canvas.paste(frame, offset)
    return canvas


def encode_png(pixels: Pixels, text: Mapping[str, str]) -> bytes:
    """A PNG file of `(height, width, 3)` uint8 with its text chunks.

    The bytes depend on the arguments alone: no time is written.
    """
    info = PngImagePlugin.PngInfo()
    for key, value in text.items():
        info.add_text(key, value.replace("\x00", ""))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(
        buffer, "PNG", pnginfo=info, compress_level=_PNG_COMPRESSION, optimize=False
    )
    return buffer.getvalue()
