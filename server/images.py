"""Upload bytes to an upright sRGB picture of the size asked for, and a picture to a PNG file.

All of it is plain blocking code: the server calls it in worker threads.
"""

from __future__ import annotations

import contextlib
import io
import math
import threading
import warnings
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError, features

from pipelines.request import MAX_SIDE, MIN_SIDE, SIDE_MULTIPLE, Pixels
from server.colour import to_srgb
from server.schemas import IMAGE_FIELD, ResizeMode

try:
    import pillow_heif
except ImportError:
    _HEIF_AVAILABLE = False
else:
    pillow_heif.register_heif_opener()
    _HEIF_AVAILABLE = True

MAX_PIXELS = 100_000_000

# Pillow warns above the limit and refuses above twice it; the warning is made a refusal too.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.simplefilter("error", Image.DecompressionBombWarning)
# What it remarks about damaged uploads is of no use to the operator.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

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

_ENOUGH_SIDE = 2 * MAX_SIDE
"""A picture whose both sides are at least twice this is scaled down while it is decoded."""

_LARGE_PIXELS = 16_000_000
_large_picture_turn = threading.Lock()
"""Held while a large picture is decoded: several at once would need gigabytes."""

_SHRINKABLE_MODES = ("L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "F", "I")
_ORIENTATION_TAG = 0x0112
_SIDEWAYS = (5, 6, 7, 8)
_PNG_COMPRESSION = 6


class PictureError(ValueError):
    """The upload is no picture to work with; the message names init_image and says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{IMAGE_FIELD}: {reason}")


def prepare_picture(
    data: bytes | bytearray,
    width: int | None,
    height: int | None,
    mode: ResizeMode,
    auto_sizes: Sequence[tuple[int, int]] = (),
) -> Pixels:
    """The upload as pixels of the size to make, `(height, width, 3)` uint8. Raises PictureError."""
    picture, size = _decode(data)
    target = fit_size(size, width, height, auto_sizes)
    # A copy, since tensors are not made of read-only arrays.
    return np.array(fit_picture(picture, *target, mode))


def decode_picture(data: bytes | bytearray) -> Image.Image:
    """The upload's first frame, upright, in sRGB, mode RGB, alpha laid on white.

    Where both sides are far above what can be asked for, the picture is scaled down on the way, to
    bound memory. Raises PictureError.
    """
    return _decode(data)[0]


def _decode(data: bytes | bytearray) -> tuple[Image.Image, tuple[int, int]]:
    """The picture, and the upright size it has in the file."""
    opened = _open(data)
    large = opened.width * opened.height > _LARGE_PIXELS
    with _large_picture_turn if large else contextlib.nullcontext():
        size = _load(opened)
        if _orientation(opened) in _SIDEWAYS:
            size = size[::-1]
        return to_srgb(_upright(_shrink(opened))), size


def _open(data: bytes | bytearray) -> Image.Image:
    if not data:
        raise PictureError("the file is empty")
    try:
        opened = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise PictureError(_too_many_pixels()) from None
    except UnidentifiedImageError:
        names = ", ".join(FORMATS)
        raise PictureError(f"the file is no picture in a known format ({names})") from None
    except Exception:
        raise PictureError("the picture is corrupt") from None
    if opened.width * opened.height > MAX_PIXELS:
        raise PictureError(_too_many_pixels())
    if min(opened.size) < 1:
        raise PictureError("the picture has no pixels")
    return opened


def _too_many_pixels() -> str:
    return f"the picture has over {MAX_PIXELS // 10**6} megapixels"


def _load(opened: Image.Image) -> tuple[int, int]:
    """Decode the pixels; the size of the picture before any scaling down on the way."""
    size = opened.size
    # Decoders raise all sorts of exceptions on hostile bytes, so everything is caught here, and
    # the conversion afterwards, which works on sound pixels, is not.
    try:
        if opened.format in ("JPEG", "MPO"):
            opened.draft(None, (min(_ENOUGH_SIDE, size[0]), min(_ENOUGH_SIDE, size[1])))
        opened.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise PictureError(_too_many_pixels()) from None
    except Exception:
        raise PictureError("the picture is truncated or corrupt") from None
    # Pillow turns a TIFF upright as it loads it.
    return opened.size if opened.format == "TIFF" else size


def _shrink(image: Image.Image) -> Image.Image:
    factor = min(image.size) // _ENOUGH_SIDE
    if factor < 2 or image.mode not in _SHRINKABLE_MODES or "transparency" in image.info:
        return image
    return image.reduce(factor)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:
        return 1  # Unreadable EXIF is no reason to refuse a sound picture.


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def fit_size(
    picture_size: tuple[int, int],
    width: int | None,
    height: int | None,
    auto_sizes: Sequence[tuple[int, int]] = (),
) -> tuple[int, int]:
    """The size to make from a picture of `picture_size`, each side a multiple of 64 in 320..1536.

    Neither side given: the picture's own times `min(max(1, 320 / shorter), 1536 / longer)`, or of
    `auto_sizes` the one of the nearest aspect ratio, and of those the one nearest in area. One
    given: the other by the picture's aspect ratio.
    """
    own_width, own_height = picture_size
    if width is None and height is None and auto_sizes:

        def distance(size: tuple[int, int]) -> tuple[float, float]:
            ratio = size[0] * own_height / (size[1] * own_width)
            area = size[0] * size[1] / (own_width * own_height)
            return round(abs(math.log(ratio)), 9), abs(math.log(area))

        return min(auto_sizes, key=distance)
    if width is not None and height is not None:
        return width, height
    if width is not None:
        return width, _nearest_side(Fraction(width * own_height, own_width))
    if height is not None:
        return _nearest_side(Fraction(height * own_width, own_height)), height
    shorter, longer = sorted(picture_size)
    scale = min(max(Fraction(1), Fraction(MIN_SIDE, shorter)), Fraction(MAX_SIDE, longer))
    return _nearest_side(own_width * scale), _nearest_side(own_height * scale)


def _nearest_side(side: Fraction) -> int:
    """The multiple of 64 nearest to `side`, halves upwards, within the allowed sides."""
    nearest = math.floor(side / SIDE_MULTIPLE + Fraction(1, 2)) * SIDE_MULTIPLE
    return min(max(nearest, MIN_SIDE), MAX_SIDE)


def fit_picture(image: Image.Image, width: int, height: int, mode: ResizeMode) -> Image.Image:
    """The RGB picture at `width` x `height` by centre crop, stretching or padding with white."""
    if mode is ResizeMode.STRETCH:
        return _resize(image, (width, height), (0, 0, *image.size))
    if mode is ResizeMode.CROP:
        return _resize(image, (width, height), _centre_crop(image.size, (width, height)))
    scale = min(Fraction(width, image.width), Fraction(height, image.height))
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    canvas = Image.new("RGB", (width, height), "white")
    offset = ((width - inner[0]) // 2, (height - inner[1]) // 2)
    canvas.paste(_resize(image, inner, (0, 0, *image.size)), offset)
    return canvas


def _centre_crop(
    size: tuple[int, int], target: tuple[int, int]
) -> tuple[float, float, float, float]:
    """The largest centred box of `size` with the aspect ratio of `target`, in source pixels."""
    scale = max(Fraction(target[0], size[0]), Fraction(target[1], size[1]))
    width, height = target[0] / scale, target[1] / scale
    left, top = (size[0] - width) / 2, (size[1] - height) / 2
    return float(left), float(top), float(left + width), float(top + height)


def _resize(
    image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]
) -> Image.Image:
    # A gap of 3 leaves Lanczos 3 source pixels a target pixel: the shortcut does not show.
    return image.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)


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
