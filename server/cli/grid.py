"""One picture of all pictures, with labels that say in what they differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from server.cli.jobs import Job

_CELL = 512
"""The longest side of a cell, in pixels."""
_GAP = 8
_FONT_SIZE = 16
_MOST_LINES = 3
_PAPER, _INK = "white", "black"


def labels_of(jobs: Sequence[Job]) -> list[str]:
    """Return a label for each job: the input's name and the fields that are not alike in all."""
    names = list(dict.fromkeys(name for job in jobs for name in job.texts))
    differing = [name for name in names if len({job.texts.get(name) for job in jobs}) > 1]
    several_inputs = len({job.input for job in jobs}) > 1
    return [_label(job.input.name if several_inputs else "", job.texts, differing) for job in jobs]


def _label(picture: str, texts: Mapping[str, str], differing: Sequence[str]) -> str:
    said = {name: texts[name] for name in differing if name in texts}
    words = (value if name == "prompt" else f"{name} {value}" for name, value in said.items())
    return ", ".join([picture, *words] if picture else words)


def write_grid(pictures: Sequence[tuple[str, Path]], target: Path) -> None:
    """Write a PNG of the pictures, each with its label below, near a square of them.

    Raises OSError.
    """
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    font = ImageFont.load_default(_FONT_SIZE)
    cells = []
    for label, path in pictures:
        with Image.open(path) as image:
            cell = image.convert("RGB")
        cell.thumbnail((_CELL, _CELL))
        cells.append((cell, _wrapped(label, font, cell.width)))
    width = max(cell.width for cell, _ in cells)
    height = max(cell.height for cell, _ in cells)
    line_height = _FONT_SIZE + 4
    text_height = line_height * max(len(lines) for _, lines in cells)
    pitch = (width + _GAP, height + text_height + _GAP)
    sheet = Image.new("RGB", (columns * pitch[0] + _GAP, rows * pitch[1] + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, (cell, lines) in enumerate(cells):
        left = _GAP + number % columns * pitch[0]
        top = _GAP + number // columns * pitch[1]
        sheet.paste(cell, (left, top))
        for line_number, line in enumerate(lines):
            at = (left, top + cell.height + 2 + line_number * line_height)
            draw.text(at, line, fill=_INK, font=font)
    sheet.save(target, "PNG")


def _wrapped(
    label: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> list[str]:
    """Return the label in lines of at most that width in pixels; what is over is cut, and shown."""
    lines = [""]
    for word in label.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    cut = len(lines) > _MOST_LINES
    lines = lines[:_MOST_LINES]
    for number, line in enumerate(lines):
        marked = line + "..." if cut and number == _MOST_LINES - 1 else line
        while font.getlength(marked) > width and len(line) > 1:
            line = line[:-1]
            marked = f"{line}..."
        lines[number] = marked
    return lines
