"""The npm package `stability-ai`, whose address no setting changes: its HTTP client is told."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.clients.conftest import KEY, pixels
from tests.server.server_process import ServerProcess

PACKAGE = "stability-ai"
VERSION = "0.7.0"
SCRIPT = Path(__file__).with_name("stability_npm.js")


@pytest.fixture(scope="module")
def modules() -> Path:
    """Return a folder `node_modules` with the package, kept in the user's cache."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("needs node and npm")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "img2img-server-tests" / f"{PACKAGE}-{VERSION}"
    installed = folder / "node_modules" / PACKAGE / "package.json"
    if not installed.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", "."]
        try:
            done = subprocess.run(
                [*command, f"{PACKAGE}@{VERSION}"],
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=60,
            )
        except subprocess.TimeoutExpired:
            pytest.skip(f"npm did not install {PACKAGE} in 60 s")
        if done.returncode or not installed.is_file():
            pytest.skip(f"npm cannot install {PACKAGE}: {done.stderr[-300:]}")
    return folder / "node_modules"


@pytest.mark.slow("protocols")
def test_its_calls_work(
    server: ServerProcess, modules: Path, image: bytes, light_mask: bytes, tmp_path: Path
) -> None:
    files = [tmp_path / "image.png", tmp_path / "mask.png"]
    for file, data in zip(files, (image, light_mask), strict=True):
        file.write_bytes(data)
    done = subprocess.run(
        ["node", str(SCRIPT), server.url, KEY, *map(str, files)],
        env={**os.environ, "NODE_PATH": str(modules), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["account"]["email"]
    assert told["balance"]["credits"] > 0
    assert "stable-diffusion-v1-6" in {engine["id"] for engine in told["engines"]}
    made = {
        name: [pixels(Path(item["filepath"]).read_bytes()) for item in told[name]]
        for name in ("drawn", "changed", "masked")
    }
    before = pixels(image)
    for images in made.values():
        assert [picture.shape for picture in images] == [before.shape] * 2
        assert not np.array_equal(*images)
    # A schedule that starts at 0.1 leaves most of the image.
    assert np.abs(made["changed"][0].astype(int) - before).mean() < 40
    for picture in made["masked"]:
        assert np.array_equal(picture[:, :160], before[:, :160])
        assert not np.array_equal(picture[:, 160:], before[:, 160:])
    assert "body.steps must be in 10..50; 5 is not" in told["refused"]
