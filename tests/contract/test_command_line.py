"""The command line on a real model, and that it makes what the server makes."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageChops
from PIL.ExifTags import IFD, Base

from server import __version__
from tests.contract.cli_process import Done, run, run_each
from tests.contract.conftest import KEY, QUICK, Client, contract_model


@pytest.mark.slow("operations")
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


def test_generate_by_a_server_makes_that_picture_too(
    client: Client, tmp_path: Path, small_picture: bytes
) -> None:
    picture, jobs = tmp_path / "in.png", tmp_path / "jobs.csv"
    picture.write_bytes(small_picture)
    jobs.write_text("input,prompt,output\nin.png,a blue circle,a.png\nin.png,a cat,b.webp\n")
    options = [f"--{name.replace('_', '-')}={value}" for name, value in QUICK.items()]
    options += ["--seed=21", "-o", str(tmp_path / "out"), "--grid", str(tmp_path / "grid.png")]
    done = run(
        "generate", "--jobs", str(jobs), "--url", client.server.url, *options,
        environment={"IMG2IMG_API_KEY": KEY},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = client.ask(small_picture, **QUICK, seed=21, prompt="a blue circle")
    assert (tmp_path / "out" / "a.png").read_bytes() == made.png
    with Image.open(tmp_path / "out" / "b.webp") as other:
        assert other.format == "WEBP"
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width > 2 * 320


SUFFIXES = {"jpg": "JPEG", "webp": "WEBP"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("generated")


@pytest.fixture(scope="module")
def done(folder: Path, small_picture: bytes) -> dict[str, Done]:
    """The ends of commands by their names: a picture of each suffix, the doctor."""
    picture = folder / "in.png"
    picture.write_bytes(small_picture)
    strength = "--image-strength=1"  # the answer is then the fitted picture itself
    commands = {
        suffix: ["generate", str(picture), "a круг", "-o", str(folder / f"out.{suffix}"),
                 "--seed=3", strength]
        for suffix in SUFFIXES
    }  # fmt: skip
    commands["doctor"] = ["doctor", f"--model={contract_model()}"]
    return dict(zip(commands, run_each(*commands.values()), strict=True))


@pytest.mark.slow("operations")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_generate_writes_the_format_of_the_suffix(
    folder: Path, done: dict[str, Done], suffix: str
) -> None:
    assert done[suffix].returncode == 0, done[suffix].stderr
    assert "this is a demo model" in done[suffix].stderr
    with Image.open(folder / f"out.{suffix}") as made, Image.open(folder / "in.png") as sent:
        assert made.format == SUFFIXES[suffix]
        difference = ImageChops.difference(made.convert("RGB"), sent.convert("RGB"))
        assert max(high for _, high in difference.getextrema()) < 16
        comment = made.getexif().get_ifd(IFD.Exif)[Base.UserComment]
    # As A1111's tools read it.
    assert comment.startswith(b"UNICODE\0")
    assert comment[8:].decode("utf-16-be").startswith("a круг\nSteps: 30, Sampler: ")


@pytest.mark.slow("operations")
def test_doctor_finds_nothing_wrong(done: dict[str, Done]) -> None:
    assert done["doctor"].returncode == 0, done["doctor"].stdout + done["doctor"].stderr
    for word in (__version__, "torch", "threads", "device", "dtype", "model", "nothing is wrong"):
        assert word in done["doctor"].stdout
