"""The contract's own example, run as it is written there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from PIL import Image

from tests.contract.conftest import Client

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
