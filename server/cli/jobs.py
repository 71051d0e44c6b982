"""What `img2img generate` is to make: from inputs, globs and lists to the files to write.

All of it is checked before any work begins; `JobsError` has every line that is wrong.
"""

from __future__ import annotations

import csv
import errno
import glob
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.images.encode import SUFFIXES, ImageFormat, format_of
from server.img2img.form import TEXT_FIELDS, parse_form

ROW_FIELDS = ("input", "output", "mask")
"""Of a row in a list of jobs, besides the form's."""


class JobsError(Exception):
    """What was given cannot be done; a line for each thing that is wrong."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))


@dataclass(frozen=True)
class Row:
    """One picture to make, as it was asked for; ``place`` names it in complaints."""

    place: str
    input: Path
    texts: Mapping[str, str]
    mask: Path | None = None
    output: str = ""


@dataclass(frozen=True)
class Job:
    """One picture to make: the form's texts, the files it reads and the one it writes."""

    input: Path
    texts: Mapping[str, str]
    output: Path
    format: ImageFormat
    mask: Path | None = None

    def write(self, file: bytes) -> None:
        """Write the picture, whole or not at all: what is there counts as done in a later run."""
        if self.output.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        with tempfile.NamedTemporaryFile(
            prefix=f".{self.output.name}-", dir=self.output.parent, delete=False
        ) as unfinished:
            try:
                unfinished.write(file)
                unfinished.close()
                mask = os.umask(0)
                os.umask(mask)
                Path(unfinished.name).chmod(0o666 & ~mask)
                Path(unfinished.name).replace(self.output)
            except BaseException:
                Path(unfinished.name).unlink(missing_ok=True)
                raise


def rows_of_inputs(
    patterns: Sequence[str], texts: Mapping[str, str], mask: Path | None
) -> list[Row]:
    """Return a row for each input. Raises JobsError."""
    rows, wrong = [], []
    for pattern in patterns:
        found = [pattern]
        if not Path(pattern).exists():
            found = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207  takes absolute ones
        if not found:
            wrong.append(f"{pattern}: there is no such file")
        rows += [Row(name, Path(name), texts, mask) for name in found]
    if os.path.isfile(texts.get("prompt", "")):  # noqa: PTH113  no text is too long for it
        wrong.append(f"PROMPT: {texts['prompt']} is a file; the prompt comes last: 'a cat'")
    _raise(wrong + _unreadable(rows))
    return rows


def rows_of_list(list_file: Path, defaults: Mapping[str, str], mask: Path | None) -> list[Row]:
    """Return a row for each line of a CSV or JSONL file; ``defaults`` are for what it leaves out.

    Its paths are relative to its folder. Raises JobsError.
    """
    known = {*ROW_FIELDS, *TEXT_FIELDS}
    rows, wrong = [], []
    for number, said in _lines(list_file):
        place = f"{list_file.name} line {number}"
        if isinstance(said, str):
            wrong.append(f"{place}: {said}")
            continue
        wrong += [f"{place}: {name} is no field" for name in said if name not in known]
        if not said.get("input"):
            wrong.append(f"{place}: input: is required")
            continue
        texts = {**defaults, **{name: said[name] for name in TEXT_FIELDS if said.get(name)}}
        own_mask = list_file.parent / said["mask"] if said.get("mask") else mask
        picture = list_file.parent / said["input"]
        rows.append(Row(place, picture, texts, own_mask, said.get("output", "")))
    if not rows and not wrong:
        wrong.append(f"{list_file}: holds no job")
    _raise(wrong + _unreadable(rows))
    return rows


def _lines(list_file: Path) -> Iterator[tuple[int, dict[str, str] | str]]:
    """Yield each row of a list with the number of its line, or what is wrong with it.

    Raises JobsError.
    """
    try:
        text = list_file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise JobsError([f"{list_file}: {error}"]) from None
    if list_file.suffix.lower() == ".csv":
        yield from _csv_lines(text, list_file)
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield number, _texts(line)


def _csv_lines(text: str, list_file: Path) -> Iterator[tuple[int, dict[str, str] | str]]:
    more = ""  # The key of values beyond the head's.
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey=more, restval="", strict=True)
    try:
        for row in reader:
            if more in row:
                yield reader.line_num, "has more values than the head has names"
            else:
                yield reader.line_num, {name.strip(): value for name, value in row.items()}
    except csv.Error as error:
        raise JobsError([f"{list_file.name} line {reader.line_num}: {error}"]) from None


def _texts(line: str) -> dict[str, str] | str:
    try:
        said: Any = json.loads(line)
    except ValueError as error:
        return f"is no JSON: {error}"
    if not isinstance(said, dict):
        return "is no JSON object"
    given = {name: value for name, value in said.items() if value is not None}
    return {name: v if isinstance(v, str) else json.dumps(v) for name, v in given.items()}


def _unreadable(rows: Sequence[Row]) -> list[str]:
    files = [(row.place, path) for row in rows for path in (row.input, row.mask) if path]
    said = {path: problem for _, path in files if (problem := _problem(path))}
    return list(dict.fromkeys(
        f"{path}: {said[path]}" if place == str(path) else f"{place}: {path}: {said[path]}"
        for place, path in files if path in said
    ))  # fmt: skip


def _problem(path: Path) -> str | None:
    if path.is_dir():
        return f"is a folder; name its pictures: {path}/*"
    if not path.exists():
        return "there is no such file"
    return None if os.access(path, os.R_OK) else "cannot be read"


def jobs_of(rows: Sequence[Row], output: Path | None, suffix: str) -> list[Job]:
    """Return what is to be made, with the folders of the outputs made. Raises JobsError.

    One row without an output of its own goes into the file ``output``. Else ``output`` is a folder:
    files in it have the inputs' names, numbered where several would be the same.
    """
    if len(rows) > 1:
        bad = ((row.place, problem) for row in rows for problem in parse_form(row.texts)[1])
        _raise([f"{place}: {problem}" for place, problem in bad])
    outputs = _outputs(rows, output, suffix)
    taken: dict[Path, str] = {}
    jobs, wrong = [], []
    for row, path in zip(rows, outputs, strict=True):
        form = format_of(path)
        if path in taken:
            wrong.append(f"{row.place}: output: {path} is that of {taken[path]} too")
        elif form is None:
            wrong.append(f"--output: {path.name} has none of the suffixes {', '.join(SUFFIXES)}")
        elif problem := cannot_write(path):
            wrong.append(f"--output: {problem}")
        else:
            jobs.append(Job(row.input, row.texts, path, form, row.mask))
        taken[path] = row.place
    _raise(list(dict.fromkeys(wrong)))
    return jobs


def _outputs(rows: Sequence[Row], output: Path | None, suffix: str) -> list[Path]:
    folder = output or Path("out")
    one = len(rows) == 1 and not rows[0].output
    if one and output is not None and output.is_dir():
        one = False
    if one:
        return [output or Path(f"out{suffix}")]
    if folder.suffix.lower() in SUFFIXES and not folder.is_dir():
        raise JobsError([f"--output: {folder}: name a folder for {len(rows)} pictures"])
    paths: list[Path] = []
    own = {folder / row.output for row in rows if row.output}
    for row in rows:
        path = folder / (row.output or row.input.stem + suffix)
        number = 2
        while not row.output and (path in paths or path in own):
            path = folder / f"{row.input.stem}-{number}{suffix}"
            number += 1
        paths.append(path)
    return paths


def cannot_write(path: Path) -> str | None:
    """Make the folder of a file to write; return why it could not be written, or None."""
    if path.is_dir():
        return f"{path} is a folder; give the name of a file"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"the folder {path.parent} cannot be made: {error.strerror}"
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        return f"{path} cannot be written"
    return None


def _raise(lines: list[str]) -> None:
    if lines:
        raise JobsError(lines)
