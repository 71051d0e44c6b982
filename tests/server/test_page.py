"""What the page is told of the server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.api import page


@pytest.mark.parametrize("checkout", [True, False])
def test_the_page_names_a_command_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkout: bool
) -> None:
    monkeypatch.setattr(page, "WEB_FOLDER", tmp_path / "server" / "web")
    script = tmp_path / "scripts" / ("serve.ps1" if os.name == "nt" else "serve")
    if checkout:
        script.parent.mkdir()
        script.touch()
    demo = page._demo("embedded")
    assert demo is not None
    expected = str(script.relative_to(tmp_path)) if checkout else "img2img serve"
    assert demo["command"].startswith(f"{expected} --model ")
