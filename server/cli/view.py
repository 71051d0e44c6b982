"""What a terminal shows of pictures that are being made: a bar for each, and one that forms."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.style import Style
from rich.text import Text

from server.cli.graphics import Inline, protocol_of, removal
from server.cli.shared import silence

PREVIEW_COLUMNS = 40
_REFRESHES = 8


class _Counts(ProgressColumn):
    """What is done of what, the time it took, and what is left as far as that is known."""

    def render(self, task: Task) -> Text:
        parts = [] if task.total is None else [f"{task.completed:.0f} of {task.total:.0f}"]
        parts.append(_clock(task.elapsed or 0.0))
        if task.time_remaining:
            parts.append(f"{_clock(task.time_remaining)} left")
        return Text(" · ".join(parts), style="progress.elapsed")


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


class _Console(Console):
    def on_broken_pipe(self) -> None:
        # By default it ends the program; but that nobody reads how far they are costs no picture.
        self.quiet = True
        silence(sys.stderr)


class View:
    """Shows progress on standard error: bars on a terminal, a line a stage elsewhere.

    ``pictures`` is how many there will be. A picture that forms is drawn as a picture where the
    terminal is known to show such (`graphics.py`), else in half blocks, which any terminal of full
    colour can show, over ssh and in tmux too.
    """

    def __init__(self, pictures: int, *, previews: bool = True) -> None:
        self._console = _Console(stderr=True)
        full_colour = self._console.color_system == "truecolor"
        self._protocol = protocol_of(os.environ) if self._console.is_terminal else None
        drawable = self._console.is_terminal and (full_colour or self._protocol is not None)
        self.previews = previews and drawable
        self._preview: Text | Inline | None = None
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            _Counts(),
            console=self._console,
        )
        self._several = pictures > 1
        self._all = self._bars.add_task("pictures", total=pictures, visible=self._several)
        self._live = Live(
            get_renderable=self._shown,
            console=self._console,
            transient=True,
            refresh_per_second=_REFRESHES if self._protocol is None else _REFRESHES // 2,
            # On the same terminal results go above the bars, into a file as they are.
            redirect_stdout=self._console.is_terminal and sys.stdout.isatty(),
            redirect_stderr=self._console.is_terminal,
        )

    def __enter__(self) -> View:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        self._forget_preview()

    @contextmanager
    def picture(self, name: str) -> Iterator[PictureView]:
        """Show a picture while it is made."""
        task = self._bars.add_task(name, total=None)
        try:
            yield PictureView(self, name if self._several else "", task)
        finally:
            self._bars.remove_task(task)
            self._bars.advance(self._all)
            self._forget_preview()

    def refresh(self) -> None:
        """Draw what there is now, without a wait for the next time."""
        self._live.refresh()

    def say(self, line: str) -> None:
        """Write a line above the bars."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _shown(self) -> RenderableType:
        return self._bars if self._preview is None else Group(self._preview, self._bars)

    def show_stage(self, task: TaskID, name: str, words: str) -> None:
        """Say what begins with a picture."""
        told = f"{name}: {words}" if name else words
        before, self._bars.tasks[self._index(task)].description = self._described(task), told
        if not self._console.is_terminal and told != before:
            self.say(told)

    def show_step(self, task: TaskID, done: int, total: int) -> None:
        """Say how far a picture is."""
        self._bars.update(task, completed=done, total=total)

    def show_preview(self, image: Image.Image) -> None:
        """Draw a picture that forms."""
        if self._protocol is None:
            self._preview = half_blocks(image, PREVIEW_COLUMNS)
        else:
            self._preview = Inline(image, self._protocol, PREVIEW_COLUMNS)

    def _forget_preview(self) -> None:
        if self._preview is not None and (erase := removal(self._protocol)):
            self._console.file.write(erase)
        self._preview = None

    def _index(self, task: TaskID) -> int:
        return self._bars.task_ids.index(task)

    def _described(self, task: TaskID) -> str:
        return self._bars.tasks[self._index(task)].description


class PictureView:
    """Hears how far one picture is."""

    def __init__(self, view: View, name: str, task: TaskID) -> None:
        self._view = view
        self._name = name
        self._task = task
        self.previews = view.previews

    def stage(self, words: str) -> None:
        self._view.show_stage(self._task, self._name, words)

    def step(self, done: int, total: int) -> None:
        self._view.show_step(self._task, done, total)

    def preview(self, image: Image.Image) -> None:
        self._view.show_preview(image)


def half_blocks(image: Image.Image, columns: int) -> Text:
    """Return a picture as text: a character for every two pixels, one above the other."""
    height = max(2, round(columns * image.height / image.width / 2) * 2)
    small = image.convert("RGB").resize((columns, height), Image.Resampling.BILINEAR)
    pixels = small.tobytes()
    text = Text(no_wrap=True)
    for y in range(0, height, 2):
        for x in range(columns):
            starts = ((row * columns + x) * 3 for row in (y, y + 1))
            upper, lower = (f"#{pixels[start : start + 3].hex()}" for start in starts)
            text.append("▀", Style(color=upper, bgcolor=lower))
        text.append("\n")
    return text
