"""What can be known of the images without building them; no test builds one."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from models.compile_kernels import CAPABILITIES
from server import __version__
from tests.deploy.chart import ROOT

IMAGES = [ROOT / "Dockerfile", ROOT / "Dockerfile.cuda"]
each_image = pytest.mark.parametrize("file", IMAGES, ids=lambda file: file.name)

LABELS = {"title", "description", "licenses", "version", "revision", "created", "source"}


def instructions(file: Path) -> list[tuple[str, str]]:
    """Return (instruction, arguments) of a Dockerfile, continued lines as one."""
    text = re.sub(r"(?m)^#.*\n", "", file.read_text(encoding="utf-8"))
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def of(file: Path, name: str) -> list[str]:
    return [arguments for instruction, arguments in instructions(file) if instruction == name]


def allowed_by_dockerignore(path: str) -> bool:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    return "*" in lines and f"!{path.rstrip('/')}" in lines


@each_image
def test_what_is_copied_is_here_and_in_the_context(file: Path) -> None:
    copied = [arguments.split() for arguments in of(file, "COPY")]
    sources = [source for words in copied if "--from" not in words[0] for source in words[:-1]]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert allowed_by_dockerignore(source), source
    from_stage = [words for words in copied if words[0].startswith("--from")]
    assert [words[0] for words in from_stage] == ["--from=build"]
    assert any(arguments.endswith(" AS build") for arguments in of(file, "FROM"))


@each_image
def test_what_the_wheel_needs_is_copied(file: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    copied = {word for arguments in of(file, "COPY") for word in arguments.split()}
    assert {*packages, "pyproject.toml", "README.md", "LICENSE", "requirements.lock"} <= copied


@each_image
def test_what_is_installed_is_what_is_locked(file: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (torch,) = (d for d in project["dependencies"] if d.startswith("torch=="))
    assert f"TORCH={torch.removeprefix('torch==')}" in of(file, "ARG")
    runs = " ".join(of(file, "RUN"))
    assert "pip install --no-deps --require-hashes -r requirements.lock" in runs
    assert "pip install --no-deps ." in runs and "pip check" in runs


@each_image
def test_it_runs_without_rights_and_stops_in_order(file: Path) -> None:
    (user,) = of(file, "USER")
    assert user == "10001:10001"
    last = [name for name, _ in instructions(file)]
    assert last.index("USER") > max(i for i, name in enumerate(last) if name == "RUN")
    assert of(file, "STOPSIGNAL") == ["SIGTERM"]
    assert of(file, "ENTRYPOINT") == ['["img2img"]'], "in exec form: a shell would eat the signal"
    (health,) = of(file, "HEALTHCHECK")
    assert "/health/ready" in health


@each_image
def test_its_labels(file: Path) -> None:
    (labels,) = of(file, "LABEL")
    given = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', labels))
    assert set(given) == LABELS
    assert given["licenses"] == "Apache-2.0"
    arguments = {name: value for a in of(file, "ARG") for name, _, value in [a.partition("=")]}
    assert arguments["VERSION"] == __version__
    for name in ("version", "revision", "created", "source"):
        assert given[name] == f"${{{name.upper()}}}" and name.upper() in arguments
        assert f'"{name.upper()}=' in (ROOT / "scripts" / "image").read_text(encoding="utf-8")


def test_kernels_ship_for_the_cards_that_the_pages_name() -> None:
    assert "python -m models.compile_kernels" in of(ROOT / "Dockerfile.cuda", "RUN")
    assert CAPABILITIES == (75, 80, 86, 89, 90, 100, 120)
    *most, last = (f"{capability / 10:.1f}" for capability in CAPABILITIES)
    for page in ("README.md", "docs/deployment.md"):
        assert f"{', '.join(most)} and {last}" in " ".join((ROOT / page).read_text().split()), page


@each_image
def test_no_index_and_no_registry_is_written_down(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert "://" not in text.replace("http://127.0.0.1", "")


def test_no_other_image_than_those_that_are_known() -> None:
    assert sorted(ROOT.glob("Dockerfile*")) == IMAGES


def test_scripts_image_knows_its_options() -> None:
    done = subprocess.run(
        ["bash", "scripts/image", "--gpu"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: scripts/image [--cpu] [--push] [NAME]")
