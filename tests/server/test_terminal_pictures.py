"""Previews of `img2img generate` in terminals that show pictures, on a pseudo-terminal."""

from __future__ import annotations

import base64
import fcntl
import io
import os
import re
import struct
import sys
import termios
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

from server.cli.graphics import protocol_of
from server.cli.view import View

NO_TERMINAL = dict.fromkeys(("TERM", "TERM_PROGRAM", "LC_TERMINAL", "TMUX", "KITTY_WINDOW_ID"))


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({"TERM": "xterm-kitty", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, "iterm2"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, None),
        ({"TERM": "tmux-256color", "TMUX": "/tmp/t", "TERM_PROGRAM": "iTerm.app"}, None),
        ({"TERM": "dumb", "KITTY_WINDOW_ID": "1"}, None),
    ],
)
def test_a_terminal_is_known_by_its_environment(
    environment: dict[str, str], protocol: str | None
) -> None:
    assert protocol_of(environment) == protocol


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, **environment: str) -> str:
    """What the view writes to a terminal that is 80 x 24, and 8 x 16 pixels a character."""
    for name, value in {**NO_TERMINAL, "NO_COLOR": None, **environment}.items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 640, 384))
    received = bytearray()

    def read() -> None:
        with suppress(OSError):  # the other side is closed
            while data := os.read(ours, 65536):
                received.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    image = Image.new("RGB", (40, 20), "#ff0000")
    image.paste("#0000ff", (20, 0, 40, 20))
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with View(1) as view, view.picture("out.png") as made:
            assert made.previews
            made.preview(image)
            view.refresh()
        terminal.flush()
    reader.join(20)
    os.close(ours)
    return received.decode()


def test_a_preview_is_a_picture_in_kitty(monkeypatch: pytest.MonkeyPatch) -> None:
    written = on_a_terminal(monkeypatch, TERM="xterm-kitty", KITTY_WINDOW_ID="1")
    parts = re.findall(r"\x1b_G([^;]*)(?:;([^\x1b]*))?\x1b\\", written)
    assert parts[0][0].startswith("a=T,f=100,i=7201,p=1,c=40,r=10,C=1,q=2,")
    shown = [data for options, data in parts if "a=d" not in options]
    assert all(len(data) <= 4096 for data in shown)
    end = next(at for at, (options, _) in enumerate(parts) if options.endswith("m=0"))
    with Image.open(io.BytesIO(base64.b64decode("".join(shown[: end + 1])))) as picture:
        assert picture.size == (320, 160)
        assert picture.getpixel((10, 10)) == (255, 0, 0)
    assert parts[-1][0] == "a=d,d=I,i=7201,q=2"  # It does not stay when the bars go.
    # Ten rows are there before it is drawn over them.
    assert re.search(r"(\r?\n){10}\x1b7\x1b\[10A\r\x1b_G", written)


def test_a_preview_is_a_picture_in_iterm2(monkeypatch: pytest.MonkeyPatch) -> None:
    written = on_a_terminal(monkeypatch, TERM="xterm-256color", TERM_PROGRAM="iTerm.app")
    size, data = re.findall(
        r"\x1b\]1337;File=size=(\d+);width=40;height=10;inline=1:([^\x07]*)\x07", written
    )[0]
    file = base64.b64decode(data)
    assert len(file) == int(size)
    with Image.open(io.BytesIO(file)) as picture:
        assert picture.getpixel((310, 150)) == (0, 0, 255)


def test_a_preview_is_a_picture_in_sixel(monkeypatch: pytest.MonkeyPatch) -> None:
    written = on_a_terminal(monkeypatch, TERM="foot")
    sixels = re.findall(r'\x1bP0;1q"1;1;320;160([^\x1b]*)\x1b\\', written)[0]
    assert "#0;2;" in sixels
    assert sixels.count("-") == 160 // 6  # bands of six rows, and four rows of pixels more
    widths = [
        sum(int(run or 1) for run, _ in re.findall(r"(?:!(\d+))?([?-~])", colour))
        for colour in re.split(r"[$-]", re.sub(r"#\d+;2;\d+;\d+;\d+", "", sixels))
        for colour in [re.sub(r"#\d+", "", colour)]
    ]
    assert set(widths) == {320}


def test_no_preview_is_drawn_into_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TERM", "xterm-kitty")
    with (tmp_path / "log").open("w") as file:
        monkeypatch.setattr(sys, "stderr", file)
        with View(1) as view, view.picture("out.png") as made:
            assert not made.previews
            made.stage("loading")
    assert (tmp_path / "log").read_text() == "loading\n"
