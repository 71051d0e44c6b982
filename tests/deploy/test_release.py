"""What a release has: wheel, sdist and SBOM, built as scripts/build does, installed and run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from scripts.project import shipped_environment as shipped
from server import __version__
from tests.deploy.chart import ROOT

pytestmark = [pytest.mark.slow("release"), pytest.mark.process]
NO_INDEX = re.compile(r"No matching distribution|Could not find a version|Failed to establish")


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `scripts/build` fills, which takes its tools from a package index."""
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        ["bash", "scripts/build", f"v{__version__}"],
        cwd=ROOT,
        env={**os.environ, "DIST": str(folder), "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    if done.returncode and NO_INDEX.search(done.stdout + done.stderr):
        pytest.skip("no package index is reached, from which the build takes its tools")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (found,) = dist.glob("img2img_server-*.whl")
    return found


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel, the lock's distributions and torch."""
    folder = tmp_path_factory.mktemp("clean") / "environment"
    venv.create(folder, symlinks=sys.platform != "win32", with_pip=True)
    (packages,) = folder.glob("lib/*/site-packages")
    for name, found in shipped.shipped_distributions().items():
        if name != shipped.PROJECT:
            shipped._link(found, packages)
    python = folder / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*install, str(wheel)], check=True, timeout=300)
    return python.parent


def run(programs: Path, cwd: Path, *arguments: str) -> str:
    """Return what `img2img` prints in a folder that has none of the sources."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("IMG2IMG_", "PYTHON"))}
    done = subprocess.run(
        [str(programs / "img2img"), *arguments],
        cwd=cwd,
        env={**kept, "HOME": str(cwd), "XDG_DATA_HOME": str(cwd / "data")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked(*folders: str) -> set[str]:
    command = ["git", "ls-files", *folders]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("this is no git checkout, which would say what is the project's")
    return set(done.stdout.split())


def test_the_wheel_has_every_file_of_its_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    files = tracked("server", "pipelines", "models")
    for part in ("models/embedded/unet/", "server/web/", "server/accounts/migrations/versions/"):
        assert any(name.startswith(part) for name in files)
    assert files - held == set()
    assert {name for name in held if ".dist-info/" not in name} - files == set()


def test_the_sdist_builds_the_wheel_and_has_no_secrets(dist: Path) -> None:
    """`python -m build` made the wheel from the sdist; it holds what is tracked alone."""
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert held - tracked(".") == {"PKG-INFO"}


def test_the_sbom_lists_what_is_locked_and_torch(dist: Path) -> None:
    (file,) = dist.glob("*.cdx.json")
    bill = json.loads(file.read_text(encoding="utf-8"))
    assert bill["bomFormat"] == "CycloneDX"
    root = bill["metadata"]["component"]
    assert (root["name"], root["version"]) == ("img2img-server", __version__)
    listed = {part["name"].lower(): part.get("version") for part in bill["components"]}
    lock = re.findall(r"(?m)^([a-z0-9-]+)==([^ ]+)", shipped.LOCK.read_text(encoding="utf-8"))
    assert dict(lock).items() <= listed.items()
    assert set(listed) - set(dict(lock)) == {"torch"}
    hashed = [part["name"] for part in bill["components"] if "sha256:" in part["description"]]
    assert len(hashed) == len(listed) - 1, "torch has no hash: which build it is, the machine says"


def test_the_installed_command_tells_its_version(programs: Path, tmp_path: Path) -> None:
    assert run(programs, tmp_path, "--version").strip() == f"img2img-server {__version__}"


def test_the_installed_command_finds_nothing_wrong(programs: Path, tmp_path: Path) -> None:
    said = run(programs, tmp_path, "doctor")
    assert said.rstrip().endswith("nothing is wrong")
    assert "embedded" in said


def test_the_installed_command_makes_an_image(programs: Path, tmp_path: Path) -> None:
    Image.new("RGB", (320, 320), "navy").save(tmp_path / "in.png")
    options = ["--steps", "10", "--width", "320", "--height", "320", "--seed", "1"]
    arguments = ["in.png", "a red circle", "--output", "out.png", *options]
    run(programs, tmp_path, "generate", *arguments)
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == (320, 320)
        assert len(image.convert("RGB").resize((16, 16)).getcolors() or ()) > 1


def test_the_installed_command_makes_its_database(programs: Path, tmp_path: Path) -> None:
    """The migrations are data of the package."""
    said = run(programs, tmp_path, "keys", "create", "someone", "--credits", "1")
    assert said.strip()
    assert list(tmp_path.rglob("accounts.db"))
