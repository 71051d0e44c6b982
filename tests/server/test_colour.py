"""Every mode, bit depth and colour profile of an upload, to the pixel."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageCms

from server.images.decode import decode_image
from tests.server.pictures import (
    assert_upright,
    file_of,
    four_corners,
    gradient,
    max_difference,
    sixteen_bit_rgb_png,
)

# Modes


def grey_ramp() -> Image.Image:
    return Image.fromarray(np.arange(256, dtype=np.uint8).reshape(1, 256).repeat(4, 0))


def test_one_bit() -> None:
    image = Image.new("1", (8, 8), 0)
    image.paste(1, (4, 0, 8, 8))
    decoded = decode_image(file_of(image))
    assert decoded.getpixel((0, 0)) == (0, 0, 0)
    assert decoded.getpixel((7, 0)) == (255, 255, 255)


def test_grey() -> None:
    assert max_difference(decode_image(file_of(grey_ramp())), grey_ramp().convert("RGB")) == 0


def test_grey_with_alpha_is_laid_on_white() -> None:
    image = Image.new("LA", (2, 1), (0, 255))
    image.putpixel((1, 0), (0, 0))
    decoded = decode_image(file_of(image))
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(0, 0, 0), (255, 255, 255)]


def test_alpha_is_laid_on_white() -> None:
    image = Image.new("RGBA", (3, 1), (200, 0, 0, 255))
    image.putpixel((1, 0), (200, 0, 0, 0))
    image.putpixel((2, 0), (200, 0, 0, 128))
    decoded = decode_image(file_of(image))
    assert decoded.getpixel((0, 0)) == (200, 0, 0)
    assert decoded.getpixel((1, 0)) == (255, 255, 255)
    assert np.abs(np.subtract(decoded.getpixel((2, 0)), (227, 127, 127))).max() <= 1


def test_palette() -> None:
    assert_upright(decode_image(file_of(four_corners().quantize(4))))


@pytest.mark.parametrize("file_format", ["PNG", "GIF"])
def test_palette_with_transparency(file_format: str) -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.putpixel((1, 0), 1)
    decoded = decode_image(file_of(image, file_format, transparency=0))
    assert decoded.getpixel((0, 0)) == (255, 255, 255)
    assert decoded.getpixel((1, 0)) == (200, 0, 0)


def test_palette_with_alpha_of_each_entry() -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([0, 0, 0, 200, 0, 0])
    image.putpixel((1, 0), 1)
    decoded = decode_image(file_of(image, transparency=bytes([0, 255])))
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (200, 0, 0)]


@pytest.mark.parametrize(("mode", "key"), [("L", 7), ("RGB", (7, 8, 9))])
def test_transparent_colour_key(mode: str, key: int | tuple[int, int, int]) -> None:
    image = Image.new(mode, (2, 1), key)
    image.putpixel((1, 0), 100 if mode == "L" else (100, 100, 100))
    decoded = decode_image(file_of(image, transparency=key))
    assert decoded.getpixel((0, 0)) == (255, 255, 255)
    assert decoded.getpixel((1, 0)) == (100, 100, 100)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled(file_format: str) -> None:
    values = (np.arange(256, dtype=np.uint16) * 257).reshape(1, 256).repeat(4, 0)
    data = file_of(Image.fromarray(values), file_format)
    assert max_difference(decode_image(data), grey_ramp().convert("RGB")) == 0


def test_dark_sixteen_bit_grey_stays_dark() -> None:
    values = np.full((4, 4), 300, np.uint16)
    assert decode_image(file_of(Image.fromarray(values))).getpixel((0, 0)) == (1, 1, 1)


def test_big_endian_sixteen_bit_grey() -> None:
    image = Image.frombytes("I;16B", (1, 1), (0x8000).to_bytes(2, "big"))
    decoded = decode_image(file_of(image, "TIFF"))
    assert decoded.getpixel((0, 0)) == (128, 128, 128)


def test_sixteen_bit_colour_keeps_its_high_bytes() -> None:
    data = sixteen_bit_rgb_png([(0xFFFF, 0x8000, 0x0000), (0x1234, 0xABCD, 0x00FF)])
    decoded = decode_image(data)
    assert decoded.getpixel((0, 0)) == (255, 128, 0)
    assert np.abs(np.subtract(decoded.getpixel((1, 0)), (0x12, 0xAC, 0x01))).max() <= 1


@pytest.mark.parametrize(("white", "middle"), [(1.0, 0.5), (255.0, 127.5), (65535.0, 32767.5)])
def test_floating_point_grey(white: float, middle: float) -> None:
    values = np.array([[0.0, middle, white, np.nan]], np.float32)
    decoded = decode_image(file_of(Image.fromarray(values), "TIFF"))
    assert [decoded.getpixel((x, 0))[0] for x in range(4)] == [0, 128, 255, 0]


def test_cmyk_tiff() -> None:
    image = Image.new("CMYK", (2, 1), (0, 255, 255, 0))
    image.putpixel((1, 0), (0, 0, 0, 0))
    decoded = decode_image(file_of(image, "TIFF"))
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (255, 255, 255)]


def test_cmyk_jpeg_with_adobes_inverted_inks() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    data = file_of(image, "JPEG", quality=95)
    assert b"Adobe" in data
    assert np.abs(np.subtract(decode_image(data).getpixel((8, 8)), (255, 0, 0))).max() <= 3


def test_ycbcr_tiff() -> None:
    image = four_corners().convert("YCbCr")
    assert_upright(decode_image(file_of(image, "TIFF")), 3)


def test_lab_tiff() -> None:
    lab = Image.new("LAB", (4, 4), (255, 128, 128))
    assert np.min(decode_image(file_of(lab, "TIFF")).getpixel((1, 1))) >= 250


# Colour profiles


def wide_profile() -> bytes:
    """An RGB profile whose red and green are swapped against sRGB, so that its use shows."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(profile[128:132], "big")
    tags = {}
    for index in range(count):
        start = 132 + 12 * index
        tags[bytes(profile[start : start + 4])] = start
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(profile)


def test_profile_is_converted_to_srgb() -> None:
    image = Image.new("RGB", (8, 8), (255, 0, 0))
    decoded = decode_image(file_of(image, icc_profile=wide_profile()))
    assert np.abs(np.subtract(decoded.getpixel((4, 4)), (0, 255, 0))).max() <= 2


def test_profile_is_converted_under_alpha() -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (255, 0, 0, 0))
    decoded = decode_image(file_of(image, icc_profile=wide_profile()))
    assert np.abs(np.subtract(decoded.getpixel((0, 0)), (0, 255, 0))).max() <= 2
    assert decoded.getpixel((1, 0)) == (255, 255, 255)


def test_srgb_profile_changes_next_to_nothing() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = gradient(64, 48)
    assert max_difference(decode_image(file_of(image, icc_profile=profile)), image) <= 1


@pytest.mark.parametrize("profile", [b"not a profile", b"\x00" * 200, wide_profile()[:300]])
def test_broken_profile_is_ignored(profile: bytes) -> None:
    assert_upright(decode_image(file_of(four_corners(), icc_profile=profile)))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_profile_of_another_colour_space_is_ignored(mode: str) -> None:
    image = Image.new("RGB", (16, 16), "white").convert(mode)
    data = file_of(image, "TIFF", icc_profile=wide_profile())
    assert decode_image(data).getpixel((8, 8)) == (255, 255, 255)
