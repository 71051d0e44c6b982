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
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.images.encode import SUFFIXES, ImageFormat, format_of
from server.img2img.form import TEXT_FIELDS, ImageToImageForm, parse_form

ROW_FIELDS = ("input", "output", "mask")
"""Of a row in a list of jobs, besides the form's."""

_KNOWN = frozenset((*ROW_FIELDS, *TEXT_FIELDS))
_DECIMALS = frozenset(
    name for name, known in ImageToImageForm.model_fields.items() if known.annotation is float
)
_MOST_LINES = 100
_SEPARATORS = tuple(filter(None, (os.sep, os.altsep)))

_File = tuple[int, int]
"""What a file is to the disk, whatever it is called: device and inode."""


class JobsError(Exception):
    """What was given cannot be done; a line for each thing that is wrong."""

    def __init__(self, lines: Iterable[str]) -> None:
        once = [_printable(line) for line in dict.fromkeys(lines)]
        more = [f"and {len(once) - _MOST_LINES} more"] if len(once) > _MOST_LINES else []
        super().__init__("\n".join(once[:_MOST_LINES] + more))


def _printable(line: str) -> str:
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)


@dataclass(frozen=True)
class Row:
    """One picture to make, as it was asked for; ``place`` names it in complaints."""

    place: str
    input: Path
    texts: Mapping[str, str]
    mask: Path | None = None
    output: str = ""
    of_many: bool = False
    """Whether a pattern found it, or a list holds it: another day these have several."""


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
        # Not by the output's own name, which may be as long as a name can be.
        with tempfile.NamedTemporaryFile(
            prefix=".img2img-", dir=self.output.parent, delete=False
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
) -> tuple[list[Row], list[str]]:
    """Return a row for each input, and what is wrong."""
    rows: list[Row] = []
    wrong: list[str] = []
    for pattern in patterns:
        found = [pattern]
        is_pattern = not os.path.exists(pattern)  # noqa: PTH110  no text is too long for it
        if is_pattern:
            found = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207  takes absolute ones
        if not found:
            wrong.append(f"{pattern}: there is no such file")
        rows += [Row(name, Path(name), texts, mask, of_many=is_pattern) for name in found]
    if os.path.isfile(texts.get("prompt", "")):  # noqa: PTH113  no text is too long for it
        wrong.append(f"PROMPT: {texts['prompt']} is a file; the prompt comes last: 'a cat'")
    wrong += [f"{row.input}: {said}" for row in rows if (said := _unreadable(row.input))]
    if len(rows) > 1:
        wrong += parse_form(texts)[1]
    return rows, wrong


def rows_of_list(
    list_file: Path, defaults: Mapping[str, str], mask: Path | None
) -> tuple[list[Row], list[str]]:
    """Return a row for each line of a CSV or JSONL file, and what is wrong.

    ``defaults`` are for what a line leaves out. Its paths are relative to the file's folder.
    Raises JobsError where the file cannot be read.
    """
    rows: list[Row] = []
    wrong: list[str] = []
    for number, said in _lines(list_file):
        place = f"{list_file.name} line {number}"
        if isinstance(said, str):
            wrong.append(f"{place}: {said}")
            continue
        problems = [f"{name} is no field" for name in said if name not in _KNOWN]
        if not said.get("input"):
            problems.append("input: is required")
        files = {
            name: list_file.parent / said[name] for name in ("input", "mask") if said.get(name)
        }
        problems += [f"{path}: {why}" for path in files.values() if (why := _unreadable(path))]
        texts = {**defaults, **{name: said[name] for name in TEXT_FIELDS if said.get(name)}}
        problems += parse_form(texts)[1]
        wrong += [f"{place}: {problem}" for problem in problems]
        picture = files.get("input", list_file.parent)
        own = said.get("output", "")
        rows.append(Row(place, picture, texts, files.get("mask", mask), own, of_many=True))
    if not rows and not wrong:
        wrong.append(f"{list_file}: holds no job")
    return rows, wrong


def _lines(list_file: Path) -> Iterator[tuple[int, dict[str, str] | str]]:
    """Yield each row of a list with the number of its line, or what is wrong with it.

    Raises JobsError.
    """
    try:
        text = list_file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise JobsError([f"{list_file}: {error}"]) from None
    if list_file.suffix.lower() == ".csv":
        yield from _csv_lines(text)
        return
    # Not by splitlines(), to which characters that JSON has in its strings end a line too.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, _texts(line)


def _csv_lines(text: str) -> Iterator[tuple[int, dict[str, str] | str]]:
    mark = _separator(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    head: list[str] = []
    while True:
        number = reader.line_num + 1  # Where the row begins: a value in quotes may have lines.
        try:
            row = next(reader, None)
        except csv.Error as error:
            yield number, _csv_problem(error)
            row = [] if head else None  # Without a head no row can be judged.
        if row is None:
            return
        if not head:
            head = [name.strip() for name in row]
            yield from ((number, problem) for problem in _head_problems(head))
        elif len(row) > len(head):
            yield number, "has more values than the head has names"
        elif row:
            said = zip(head, row, strict=False)  # What a short row leaves out is left out.
            yield number, {n: _pointed(n, v, mark) for n, v in said if n in _KNOWN}


def _pointed(name: str, value: str, mark: str) -> str:
    """Return a value with a point for the decimal comma of a list that has no commas between."""
    if mark != "," and name in _DECIMALS and value.count(",") == 1:
        return value.replace(",", ".")
    return value


def _separator(text: str) -> str:
    """Return what stands between the names of the head: no name has any of these itself."""
    head = text.lstrip("\r\n").partition("\n")[0]
    # Spreadsheets write ; where a comma is the decimal point.
    return next((mark for mark in ",;\t" if mark in head), ",")


def _csv_problem(error: csv.Error) -> str:
    return "a quote is not closed" if "unexpected end" in str(error) else f"is no CSV: {error}"


def _head_problems(head: Sequence[str]) -> Iterator[str]:
    for number, name in enumerate(head, 1):
        if not name:
            yield f"column {number} has no name"
        elif name in head[: number - 1]:
            yield f"{name}: more than one column has this name"
        elif name not in _KNOWN:
            yield f"{name} is no field"


def _texts(line: str) -> dict[str, str] | str:
    try:
        said: Any = json.loads(line)
        if not isinstance(said, dict):
            return "is no JSON object"
        given = {name: value for name, value in said.items() if value is not None}
        return {name: v if isinstance(v, str) else json.dumps(v) for name, v in given.items()}
    except ValueError as error:
        return f"is no JSON: {error}"
    except RecursionError:
        return "is no JSON: nested too deeply"


def _unreadable(path: Path) -> str | None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "there is no such file"
    except (OSError, ValueError) as error:
        return reason_of(error)
    if stat.S_ISDIR(mode):
        return f"is a folder; name its pictures: {path}/*"
    return None if os.access(path, os.R_OK) else "cannot be read"


def reason_of(error: OSError | ValueError) -> str:
    """Return why a path cannot be used; ValueErrors are of characters that no path can have."""
    return getattr(error, "strerror", None) or str(error)


def jobs_of(
    rows: Sequence[Row], wrong: Sequence[str], output: str | None, suffix: str
) -> list[Job]:
    """Return what is to be made, with the folders of the outputs made.

    One row without an output of its own goes into the file ``output``. Else ``output`` is a folder,
    as it is where it ends with a separator, or where that one row is of a pattern or a list and it
    has no picture's suffix: files in it have the inputs' names, numbered where several would be the
    same. Raises JobsError, with what is ``wrong`` with the rows and their outputs.
    """
    said = list(wrong)
    sources = files_read(rows)
    if wrong:
        rows = [row for row in rows if row.output]  # The others' names depend on all rows.
    taken: dict[Path, str] = {}
    jobs = []
    try:
        outputs = _outputs(rows, output, suffix)
    except JobsError as error:
        raise JobsError([*said, str(error)]) from None
    for row, path in zip(rows, outputs, strict=True):
        field = f"{row.place}: output" if row.output else "--output"
        form = format_of(path)
        if form is None:
            advice = "" if row.output else "; end it with / for a folder"
            known = ", ".join(SUFFIXES)
            said.append(f"{field}: {path.name} has none of the suffixes {known}{advice}")
        elif problem := cannot_write(path, sources):
            said.append(f"{field}: {problem}")
        elif (place := path.resolve()) in taken:
            said.append(f"{row.place}: output: {path} is that of {taken[place]} too")
        else:
            taken[place] = row.place
            jobs.append(Job(row.input, row.texts, path, form, row.mask))
    if said:
        raise JobsError(said)
    return jobs


def _outputs(rows: Sequence[Row], output: str | None, suffix: str) -> list[Path]:
    folder = Path(output or "out")
    is_picture = folder.suffix.lower() in SUFFIXES
    is_folder = _is_folder(folder) or (output or "").endswith(_SEPARATORS)
    if len(rows) == 1 and not rows[0].output:
        if output is None:
            return [Path(f"out{suffix}")]
        if not is_folder and (is_picture or not rows[0].of_many):
            return [folder]
    if rows and is_picture and not is_folder:
        raise JobsError([f"--output: {folder}: name a folder, for more than one picture"])
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


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112  no path is too long for it


def files_read(rows: Iterable[Row | Job]) -> dict[_File, str]:
    """Return the files that are read, with what each of them is."""
    read: dict[_File, str] = {}
    for row in rows:
        for path, words in ((row.mask, "a mask"), (row.input, "an input")):
            if path is not None and not _unreadable(path):
                read[_file(path.stat())] = words
    return read


def _file(found: os.stat_result) -> _File:
    return found.st_dev, found.st_ino


def cannot_write(path: Path, sources: Mapping[_File, str]) -> str | None:
    """Make the folder of a file to write; return why it could not be written, or None.

    ``sources`` are the files that are not to be written.
    """
    if _is_folder(path):
        return f"{path} is a folder; give the name of a file"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        return f"the folder {path.parent} cannot be made: {reason_of(error)}"
    at = path
    try:
        found = _file(path.stat())
    except FileNotFoundError:
        at = path.parent
    except (OSError, ValueError) as error:
        return f"{path} cannot be written: {reason_of(error)}"
    else:
        if found in sources:
            return f"{path} is {sources[found]}; name another"
    return None if os.access(at, os.W_OK) else f"{path} cannot be written"
