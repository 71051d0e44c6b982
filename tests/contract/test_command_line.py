"""The command line on a real model, and that it makes what the server makes."""

from __future__ import annotations

import subprocess
from pathlib import Path

from server import __version__
from shipped_environment import shipped_environment
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


def test_doctor_finds_nothing_wrong() -> None:
    done = run("doctor", f"--model={contract_model()}")
    assert done.returncode == 0, done.stdout + done.stderr
    for word in (__version__, "torch", "threads", "device", "dtype", "model", "nothing is wrong"):
        assert word in done.stdout


def test_version() -> None:
    assert run("--version").stdout == f"img2img-server {__version__}\n"
