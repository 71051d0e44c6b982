"""Fuzz the decoder of uploads: whatever the bytes, a picture or a ImageError, nothing else."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import atheris
from PIL import Image

with atheris.instrument_imports(include=["PIL", "server"]):
    from server.errors import ImageError
    from server.images.decode import prepare_image
    from server.img2img.form import ResizeMode

SIDE = 320


def one_input(data: bytes) -> None:
    """Decode ``data``, the last byte of which chooses how it is fitted."""
    mode = tuple(ResizeMode)[data[-1] % len(ResizeMode)] if data else ResizeMode.CROP
    try:
        pixels = prepare_image(data[:-1], SIDE, SIDE, mode)
    except ImageError:
        return
    assert pixels.shape == (SIDE, SIDE, 3)
    assert pixels.dtype == "uint8"


def write_seeds(folder: Path) -> None:
    """Write small pictures of every format and many modes, for the fuzzer to change."""
    base = Image.effect_mandelbrot((24, 16), (-2, -1.5, 1, 1.5), 50)
    kinds = {
        "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I"),
        "JPEG": ("L", "RGB", "CMYK", "YCbCr"),
        "WEBP": ("RGB", "RGBA"),
        "GIF": ("L", "P"),
        "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB", "I;16", "F"),
        "BMP": ("1", "L", "P", "RGB", "RGBA"),
        "AVIF": ("RGB", "RGBA"),
    }
    for name, modes in kinds.items():
        for mode in modes:
            buffer = io.BytesIO()
            source = base.convert("I" if mode.startswith("I") else "RGB")
            try:
                source.convert(mode).save(buffer, name)
            except (OSError, ValueError):
                continue  # not every build writes every pair
            file = folder / f"{name}-{mode.replace(';', '')}".lower()
            file.write_bytes(buffer.getvalue() + b"\0")


if __name__ == "__main__":
    write_seeds(Path(sys.argv[-1]))
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
