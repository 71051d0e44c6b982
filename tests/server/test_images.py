from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features

from server.errors import ImageError
from server.images.decode import (
    MAX_PIXELS,
    decode_image,
    encode_png,
    prepare_image,
)
from server.images.fit import fit_image, fit_size
from server.img2img.form import ResizeMode
from tests.server.pictures import (
    assert_upright,
    file_of,
    four_corners,
    gradient,
    max_difference,
    png_of,
)

# Pillow remarks on damaged metadata, as the server's own filter knows; pytest resets that filter.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

ORIENTATION = 0x0112


# Formats


@pytest.mark.parametrize(
    ("file_format", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("JPEG", {"quality": 95}, 8),
        ("JPEG", {"quality": 95, "progressive": True}, 8),
        ("WEBP", {"lossless": True}, 0),
        ("GIF", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("BMP", {}, 0),
    ],
)
def test_each_format_is_read(file_format: str, options: dict[str, object], tolerance: int) -> None:
    data = file_of(four_corners(), file_format, **options)
    assert_upright(decode_image(data), tolerance)


@pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
def test_avif_is_read() -> None:
    assert_upright(decode_image(file_of(four_corners(), "AVIF", quality=95)), 12)


def test_heic_is_read() -> None:
    heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    heif.from_pillow(four_corners()).save(buffer, quality=95)
    assert_upright(decode_image(buffer.getvalue()), 12)


@pytest.mark.parametrize("file_format", ["GIF", "TIFF", "WEBP"])
def test_first_frame_of_several(file_format: str) -> None:
    black = Image.new("RGB", (64, 48))
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = file_of(
        four_corners(), file_format, save_all=True, append_images=[black, black], **options
    )
    assert_upright(decode_image(data))


def test_formats_that_are_not_named_are_refused() -> None:
    data = file_of(four_corners(), "PPM")
    with pytest.raises(ImageError, match="init_image: the file is no picture"):
        decode_image(data)


# EXIF orientation


def stored_for(orientation: int) -> Image.Image:
    """The picture as a camera held that way stores it."""
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    upright = four_corners(64, 48)
    return upright if undo is None else upright.transpose(undo)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation(orientation: int, file_format: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"quality": 95} if file_format == "JPEG" else {}
    options = {"lossless": True} if file_format == "WEBP" else options
    data = file_of(stored_for(orientation), file_format, exif=exif, **options)
    decoded = decode_image(data)
    assert decoded.size == (64, 48)
    assert_upright(decoded, 8 if file_format == "JPEG" else 0)


def test_size_follows_the_upright_picture() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data = file_of(gradient(400, 600), "JPEG", exif=exif)
    assert prepare_image(data, None, None, ResizeMode.CROP).shape == (384, 576, 3)


def test_broken_exif_is_ignored() -> None:
    data = file_of(four_corners(), "JPEG", quality=95, exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert_upright(decode_image(data), 8)


# What is refused


@pytest.mark.parametrize("side", [10_001, 14_200, 50_000])
def test_decompression_bomb_is_refused_before_decoding(side: int) -> None:
    data = png_of(side, side, 8, 2, b"\x00" * 100)
    assert len(data) < 1000
    with pytest.raises(ImageError, match="init_image: the picture has over 100 megapixels"):
        decode_image(data)


def test_exactly_the_most_pixels_are_taken() -> None:
    assert MAX_PIXELS == 100_000_000
    image = Image.new("1", (10_000, 10_000), 1)
    assert prepare_image(file_of(image), 320, 320, ResizeMode.CROP).min() == 255


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("part", [0.3, 0.7])
def test_truncated_picture_is_refused(file_format: str, part: float) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    data = file_of(Image.fromarray(noise), file_format)
    with pytest.raises(ImageError, match=r"^init_image: "):
        decode_image(data[: int(len(data) * part)])


@pytest.mark.parametrize(
    "data", [b"this is text, whatever the file is called", b"\x00" * 64, b"\x89PNG\r\n\x1a\n"]
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"^init_image: the (file is no picture|picture is)"):
        decode_image(data)


def test_empty_file_is_refused() -> None:
    with pytest.raises(ImageError, match="init_image: the file is empty"):
        decode_image(b"")


def test_picture_without_pixels_is_refused() -> None:
    with pytest.raises(ImageError, match="init_image"):
        decode_image(png_of(0, 5, 8, 2, b""))


@given(
    st.integers(0, 5),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
)
def test_damaged_bytes_give_a_picture_or_a_picture_error(
    which: int, damage: list[tuple[float, int]]
) -> None:
    file_format = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")[which]
    data = bytearray(file_of(four_corners(16, 16), file_format))
    for place, value in damage:
        data[int(place * len(data))] = value
    try:
        assert decode_image(data).mode == "RGB"
    except ImageError as error:
        assert str(error).startswith("init_image: ")


# Size


@pytest.mark.parametrize(
    ("picture", "asked", "expected"),
    [
        ((600, 400), (None, None), (576, 384)),
        ((451, 300), (None, None), (512, 320)),
        ((320, 320), (None, None), (320, 320)),
        ((1536, 1536), (None, None), (1536, 1536)),
        ((4000, 3000), (None, None), (1536, 1152)),
        ((3000, 4000), (None, None), (1152, 1536)),
        ((1, 1), (None, None), (320, 320)),
        ((10_000, 1), (None, None), (1536, 320)),
        ((1, 10_000), (None, None), (320, 1536)),
        ((544, 544), (None, None), (576, 576)),
        ((600, 400), (512, None), (512, 320)),
        ((600, 400), (None, 512), (768, 512)),
        ((400, 600), (1536, None), (1536, 1536)),
        ((600, 400), (320, 1536), (320, 1536)),
    ],
)
def test_size_to_make(
    picture: tuple[int, int], asked: tuple[int | None, int | None], expected: tuple[int, int]
) -> None:
    assert fit_size(picture, *asked) == expected


HOT = ((512, 512), (512, 768), (768, 512), (1024, 1024))


@pytest.mark.parametrize(
    ("picture", "asked", "expected"),
    [
        ((600, 400), (None, None), (768, 512)),
        ((3000, 4000), (None, None), (512, 768)),
        ((500, 510), (None, None), (512, 512)),
        ((2000, 2000), (None, None), (1024, 1024)),
        ((600, 400), (320, None), (320, 320)),
        ((600, 400), (640, 448), (640, 448)),
    ],
)
def test_a_request_that_names_no_size_gets_the_hot_size_of_the_nearest_shape(
    picture: tuple[int, int], asked: tuple[int | None, int | None], expected: tuple[int, int]
) -> None:
    assert fit_size(picture, *asked, HOT) == expected


SIDES = st.sampled_from(range(320, 1537, 64)) | st.none()


@given(st.integers(1, 20_000), st.integers(1, 20_000), SIDES, SIDES)
def test_size_is_always_one_that_may_be_asked_for(
    own_width: int, own_height: int, width: int | None, height: int | None
) -> None:
    made = fit_size((own_width, own_height), width, height)
    assert all(320 <= side <= 1536 and side % 64 == 0 for side in made)
    assert width in (None, made[0])
    assert height in (None, made[1])


# Fit


def test_picture_of_the_size_asked_for_is_unchanged() -> None:
    image = gradient(640, 320)
    for mode in ResizeMode:
        assert max_difference(fit_image(image, 640, 320, mode), image) == 0


def test_crop_takes_the_centre() -> None:
    image = Image.new("RGB", (960, 320), "red")
    image.paste("blue", (320, 0, 640, 320))
    cropped = fit_image(image, 320, 320, ResizeMode.CROP)
    assert cropped.getcolors() == [(320 * 320, (0, 0, 255))]


def test_stretch_keeps_everything() -> None:
    stretched = fit_image(four_corners(640, 320), 320, 640, ResizeMode.STRETCH)
    assert stretched.size == (320, 640)
    assert_upright(stretched)


def test_pad_lays_the_whole_picture_on_white() -> None:
    padded = fit_image(four_corners(640, 320), 640, 640, ResizeMode.PAD)
    assert padded.getpixel((320, 10)) == padded.getpixel((320, 630)) == (255, 255, 255)
    assert_upright(padded.crop((0, 160, 640, 480)))


def test_crop_is_lanczos() -> None:
    image = gradient(900, 600)
    expected = image.resize((576, 384), Image.Resampling.LANCZOS)
    assert max_difference(fit_image(image, 576, 384, ResizeMode.CROP), expected) <= 1


@pytest.mark.parametrize("size", [(1, 1), (10_000, 1), (1, 10_000), (3, 7)])
@pytest.mark.parametrize("mode", ResizeMode)
def test_extreme_shapes(size: tuple[int, int], mode: ResizeMode) -> None:
    data = file_of(Image.new("RGB", size, (10, 200, 30)))
    pixels = prepare_image(data, None, None, mode)
    width, height = fit_size(size, None, None)
    assert pixels.shape == (height, width, 3)
    assert tuple(pixels[(height - 1) // 2, (width - 1) // 2]) == (10, 200, 30)


@pytest.mark.process
@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_large_picture_keeps_its_aspect_ratio_and_content(file_format: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 8
    upright = four_corners(6200, 9300)
    stored = upright.transpose(Image.Transpose.ROTATE_270)
    data = file_of(stored, file_format, exif=exif)
    assert min(decode_image(data).size) < 6200  # scaled down on the way
    pixels = prepare_image(data, None, None, ResizeMode.CROP)
    assert pixels.shape == (1536, 1024, 3)
    assert_upright(Image.fromarray(pixels), 3)


def test_pixels_can_be_written_to() -> None:
    assert prepare_image(file_of(gradient()), None, None, ResizeMode.CROP).flags.writeable


# PNG


def test_png_holds_the_pixels_and_the_text() -> None:
    pixels = np.array(gradient(64, 48))
    text = {"parameters": "a cat, 猫\nSteps: 20, Seed: 1"}
    with Image.open(io.BytesIO(encode_png(pixels, text))) as image:
        assert image.format == "PNG"
        assert image.text == text
        assert max_difference(image, pixels) == 0


def test_png_is_the_same_bytes_each_time() -> None:
    pixels = np.array(gradient(64, 48))
    assert encode_png(pixels, {"parameters": "a"}) == encode_png(pixels, {"parameters": "a"})
    assert b"tIME" not in encode_png(pixels, {"parameters": "a"})
