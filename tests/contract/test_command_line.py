"""The command line on a real model, and that it makes what the server makes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from PIL import Image, ImageChops
from PIL.ExifTags import IFD, Base

from scripts.project.shipped_environment import shipped_environment
from server import __version__
from tests.contract.conftest import QUICK, Client, contract_model
from tests.server.server_process import ROOT


def run(*args: str) -> subprocess.CompletedProcess[str]:
    command = [str(shipped_environment()), "-m", "server.cli", *args]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


def test_generate_makes_the_picture_that_the_server_makes(
    client: Client, tmp_path: Path, small_picture: bytes
) -> None:
    picture, output = tmp_path / "in.png", tmp_path / "out.png"
    picture.write_bytes(small_picture)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in QUICK.items()]
    prompt = "a blue circle"
    options += ["--seed=21", f"--model={contract_model()}"]
    done = run("generate", str(picture), prompt, "-o", str(output), *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{output} (seed 21)\n"
    assert output.read_bytes() == client.ask(small_picture, **QUICK, seed=21, prompt=prompt).png


@pytest.mark.parametrize(("suffix", "kind"), [("jpg", "JPEG"), ("webp", "WEBP")])
def test_generate_writes_the_format_of_the_suffix(
    tmp_path: Path, small_picture: bytes, suffix: str, kind: str
) -> None:
    picture, output = tmp_path / "in.png", tmp_path / f"out.{suffix}"
    picture.write_bytes(small_picture)
    strength = "--image-strength=1"  # the answer is then the fitted picture itself
    done = run("generate", str(picture), "a круг", "-o", str(output), "--seed=3", strength)
    assert done.returncode == 0, done.stderr
    assert "this is a demo model" in done.stderr
    with Image.open(output) as made, Image.open(picture) as sent:
        assert made.format == kind
        difference = ImageChops.difference(made.convert("RGB"), sent.convert("RGB"))
        assert max(high for _, high in difference.getextrema()) < 16
        comment = made.getexif().get_ifd(IFD.Exif)[Base.UserComment]
    # As A1111's tools read it.
    assert comment.startswith(b"UNICODE\0")
    assert comment[8:].decode("utf-16-be").startswith("a круг\nSteps: 30, Sampler: ")


def test_doctor_finds_nothing_wrong() -> None:
    done = run("doctor", f"--model={contract_model()}")
    assert done.returncode == 0, done.stdout + done.stderr
    for word in (__version__, "torch", "threads", "device", "dtype", "model", "nothing is wrong"):
        assert word in done.stdout


def test_version() -> None:
    assert run("--version").stdout == f"img2img-server {__version__}\n"
