"""The contract's own example, and the README's, run as they are written there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.contract.conftest import KEY, Client
from tests.server.server_process import ROOT

EXAMPLE = Path(__file__).parent / "example_request.txt"
HOST = "https://www.aithriving.com"


def test_the_example_works_with_its_host_changed(
    client: Client, tmp_path: Path, picture: bytes
) -> None:
    text = EXAMPLE.read_text()
    assert text.count(HOST) == 1
    # The example uses base64 without importing it.
    script = "import base64\n" + text.replace(HOST, client.server.url)
    (tmp_path / "example_request.py").write_text(script)
    (tmp_path / "init_image.png").write_bytes(picture)
    subprocess.run([sys.executable, "example_request.py"], cwd=tmp_path, check=True, timeout=300)
    with Image.open(tmp_path / "result.png") as result:
        assert (result.format, result.mode, result.size) == ("PNG", "RGB", (576, 384))
        assert "black hair\nSteps: 20" in result.text["parameters"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("begin", ["curl ", ".venv/bin/python -c "])
def test_a_command_of_the_readme_leaves_a_picture_and_a_clean_terminal(
    client: Client, tmp_path: Path, begin: str
) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not here")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"(?m)^    {re.escape(begin)}.*\n(?:     +.*\n)*", readme)
    assert found is not None
    command = found[0].replace(".venv/bin/python", sys.executable)
    command = command.replace("c.Client()", 'c.Client("http://127.0.0.1:8000")')
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    # Not in the command: a server that has just been set up asks for no key, and this one does.
    (tmp_path / ".curlrc").write_text(f'header = "Authorization: {KEY}"\n')
    keys = {"CURL_HOME": str(tmp_path), "IMG2IMG_API_KEY": KEY}
    done = subprocess.run(
        ["sh", "-c", command.replace("http://127.0.0.1:8000", client.server.url)],
        cwd=tmp_path,
        env=os.environ | keys,
        capture_output=True,
        timeout=300,
        check=True,
    )
    assert done.stdout == b""
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.format == "PNG"
