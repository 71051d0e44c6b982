"""`scripts/_setup.sh` makes the environment once, and again where it is not this revision's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.paths import ROOT

# Makes environments, which takes seconds each time.
pytestmark = pytest.mark.slow("release")

SETUP = """
set -euo pipefail
source scripts/_setup.sh
pip_install() { echo "$*" >> pip.log; }
setup "$@"
"""
BOTH = ("requirements.lock", "requirements-test.lock")


def write_revision(root: Path, serve: str = "a==1", test: str = "b==1") -> None:
    (root / "requirements.lock").write_text(serve)
    (root / "requirements-test.lock").write_text(test)


def run_setup(root: Path, *locks: str, **environment: str) -> list[str]:
    """What pip was asked to install, a line a call."""
    log = root / "pip.log"
    log.unlink(missing_ok=True)
    (root / "setup").write_text(SETUP)
    subprocess.run(
        ["bash", "setup", *(locks or ("requirements.lock",))],
        cwd=root,
        env={**os.environ, "PYTHON": sys.executable, **environment},
        check=True,
        capture_output=True,
        timeout=120,
    )
    return log.read_text().splitlines() if log.exists() else []


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with an environment for serving; tests take copies in its place."""
    root = tmp_path_factory.mktemp("checkout") / "with a space"
    (root / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "_setup.sh", root / "scripts")
    (root / "pyproject.toml").write_text('dependencies = ["torch==2.13.0"]')
    write_revision(root)
    assert run_setup(root) == [
        "--no-deps torch==2.13.0",
        "--no-deps --require-hashes -r requirements.lock",
        "torch==2.13.0",
        "--no-deps --editable .",
    ]
    return root


def test_what_is_installed_is_not_installed_again(made: Path) -> None:
    write_revision(made)
    run_setup(made)
    assert run_setup(made) == []


def test_what_is_installed_for_tests_is_enough_to_serve(made: Path) -> None:
    write_revision(made)
    run_setup(made, "requirements.lock")
    assert (
        run_setup(made, *BOTH)[1] == "--no-deps --require-hashes -r requirements.lock -r " + BOTH[1]
    )
    assert run_setup(made) == run_setup(made, *BOTH) == []


@pytest.mark.parametrize("changed", ["pyproject.toml", "scripts/_setup.sh", "both locks"])
def test_another_revision_is_installed_for_tests_too(made: Path, changed: str) -> None:
    write_revision(made)
    run_setup(made, *BOTH)
    if changed == "both locks":
        write_revision(made, serve="a==5", test="b==5")
    else:
        file = made / changed
        file.write_text(file.read_text() + "\n# a change\n")
    assert run_setup(made, *BOTH) != []
    assert run_setup(made, *BOTH) == []


def test_an_environment_whose_python_went_is_made_anew(made: Path, tmp_path: Path) -> None:
    write_revision(made)
    run_setup(made)
    python = made / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to(tmp_path / "gone")  # pip's own command may name python3 and go on
    assert run_setup(made) != []
    assert subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode == 0


@pytest.mark.parametrize("python", ["no-such-python", "false"])
def test_a_python_that_cannot_be_used_is_told(made: Path, tmp_path: Path, python: str) -> None:
    root = tmp_path / "checkout"
    shutil.copytree(made, root, symlinks=True, ignore=shutil.ignore_patterns(".venv*"))
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run_setup(root, PYTHON=python)
    assert caught.value.returncode == 2
    assert b"Python 3.11 to 3.14 is needed" in caught.value.stderr


def test_an_older_revision_gets_its_own_packages_back(made: Path) -> None:
    write_revision(made)
    run_setup(made)
    write_revision(made, serve="a==2")
    assert run_setup(made) != []
    write_revision(made)
    assert run_setup(made) != []


def test_torch_is_taken_from_the_index_that_is_named(made: Path) -> None:
    """Also later, when the build of another index is there; and then it is kept to."""

    def asked(**environment: str) -> list[str]:
        return [call for call in run_setup(made, **environment) if "localhost" in call]

    write_revision(made)
    run_setup(made)
    named = {"TORCH_INDEX": "http://localhost/cpu"}
    assert asked(**named) == [
        "--no-deps --index-url http://localhost/cpu --force-reinstall torch==2.13.0",
        "--index-url http://localhost/cpu torch==2.13.0",
    ]
    assert asked(**named) == asked() == []
    write_revision(made, serve="a==3")
    assert asked() == [
        "--no-deps --index-url http://localhost/cpu torch==2.13.0",
        "--index-url http://localhost/cpu torch==2.13.0",
    ]


@pytest.mark.parametrize("cut_off", ["without pip", "moved"])
def test_an_environment_that_cannot_be_used_is_made_anew(
    made: Path, tmp_path: Path, cut_off: str
) -> None:
    root = tmp_path / "checkout"
    shutil.copytree(made, root, symlinks=True)  # its commands name the folder it was made in
    write_revision(root)
    if cut_off == "without pip":
        shutil.rmtree(root / ".venv")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", root / ".venv"], check=True)
    assert run_setup(root) != []
    pip = subprocess.run(
        [root / ".venv" / "bin" / "pip", "--version"], check=True, capture_output=True, text=True
    )
    assert f" {root}/.venv/" in pip.stdout
