"""Pictures in terminals: kitty's graphics protocol, iTerm2's inline images, sixel.

Which of them a terminal knows is told by the environment alone: to ask the terminal would read from
the keyboard. Within tmux or screen none gets through.
"""

from __future__ import annotations

import base64
import io
import struct
import sys
from collections.abc import Mapping
from enum import StrEnum

from PIL import Image
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import ControlType, Segment

KITTY_ID = 7_201
"""The image's number in kitty: each new preview takes the place of the one before."""
_CHUNK = 4096
_PIXELS_A_COLUMN = 8
_SIXEL_COLOURS = 128
_SIXEL_TERMS = ("foot", "mlterm", "contour")


class Protocol(StrEnum):
    """A way to show a picture."""

    KITTY = "kitty"
    ITERM2 = "iterm2"
    SIXEL = "sixel"


def protocol_of(environment: Mapping[str, str]) -> Protocol | None:
    """Return what the terminal is known to show, None where half blocks have to do."""
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if "TMUX" in environment or term.startswith(("screen", "tmux", "dumb")):
        return None
    if "KITTY_WINDOW_ID" in environment or "kitty" in term or program == "ghostty":
        return Protocol.KITTY
    if program in ("iTerm.app", "WezTerm") or environment.get("LC_TERMINAL") == "iTerm2":
        return Protocol.ITERM2
    if term.startswith(_SIXEL_TERMS) or "sixel" in term:
        return Protocol.SIXEL
    return None


class Inline:
    """A picture in ``columns`` columns, for rich: rows that are left blank, and drawn over."""

    def __init__(self, image: Image.Image, protocol: Protocol, columns: int) -> None:
        # A character is about twice as high as it is wide.
        self.rows = max(1, round(columns * image.height / image.width / 2))
        self._columns = columns
        size = (columns * _PIXELS_A_COLUMN, self.rows * 2 * _PIXELS_A_COLUMN)
        if protocol is Protocol.SIXEL:
            width, height = _cell()
            size = (columns * width, self.rows * height)
        shown = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        drawing = {Protocol.KITTY: self._kitty, Protocol.ITERM2: self._iterm2}
        self._drawing = drawing.get(protocol, _sixel)(shown)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # The rows are there before anything is drawn, so drawing never scrolls.
        for _ in range(self.rows):
            yield Segment.line()
        draw = f"\x1b7\x1b[{self.rows}A\r{self._drawing}\x1b8"
        yield Segment(draw, None, [(ControlType.HOME,)])

    def _kitty(self, image: Image.Image) -> str:
        data = base64.standard_b64encode(_png(image)).decode()
        chunks = [data[at : at + _CHUNK] for at in range(0, len(data), _CHUNK)]
        head = f"a=T,f=100,i={KITTY_ID},p=1,c={self._columns},r={self.rows},C=1,q=2,"
        parts = (
            f"\x1b_G{head if index == 0 else ''}m={int(index < len(chunks) - 1)};{chunk}\x1b\\"
            for index, chunk in enumerate(chunks)
        )
        return "".join(parts)

    def _iterm2(self, image: Image.Image) -> str:
        file = _png(image)
        data = base64.standard_b64encode(file).decode()
        options = f"size={len(file)};width={self._columns};height={self.rows};inline=1"
        return f"\x1b]1337;File={options}:{data}\x07"


def removal(protocol: Protocol | None) -> str:
    """Return what takes a picture away that erasing its rows does not."""
    return f"\x1b_Ga=d,d=I,i={KITTY_ID},q=2\x1b\\" if protocol is Protocol.KITTY else ""


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def _cell() -> tuple[int, int]:
    """Return the pixels of a character, (width, height); the usual ones where nobody knows."""
    try:
        import fcntl
        import termios

        size = fcntl.ioctl(sys.stderr.fileno(), termios.TIOCGWINSZ, bytes(8))
        rows, columns, width, height = struct.unpack("HHHH", size)
        if width and height:
            return max(1, width // columns), max(1, height // rows)
    except (ImportError, OSError, ValueError, ZeroDivisionError):
        pass
    return 8, 16


def _sixel(image: Image.Image) -> str:
    """Return the picture as sixels: six rows at a time, a colour after another."""
    import numpy as np  # which --help should not wait for

    indexed = image.quantize(_SIXEL_COLOURS, dither=Image.Dither.NONE)
    palette = indexed.getpalette() or []
    width, height = indexed.size
    pixels = np.frombuffer(indexed.tobytes(), np.uint8).reshape(height, width)
    head = [f'\x1bP0;1q"1;1;{width};{height}']
    for colour in range(len(palette) // 3):
        red, green, blue = (round(value * 100 / 255) for value in palette[colour * 3 :][:3])
        head.append(f"#{colour};2;{red};{green};{blue}")
    bands = []
    for top in range(0, height, 6):
        band = pixels[top : top + 6]
        weights = 1 << np.arange(len(band))
        colours = ((colour, weights @ (band == colour)) for colour in np.unique(band))
        bands.append("$".join(f"#{colour}{_runs(bits.tolist())}" for colour, bits in colours))
    return "".join(head) + "-".join(bands) + "\x1b\\"


def _runs(bits: list[int]) -> str:
    """Return sixels with repeats counted: `!12~`."""
    parts, at = [], 0
    while at < len(bits):
        end = at
        while end < len(bits) and bits[end] == bits[at]:
            end += 1
        letter = chr(63 + bits[at])
        parts.append(f"!{end - at}{letter}" if end - at > 3 else letter * (end - at))
        at = end
    return "".join(parts)
