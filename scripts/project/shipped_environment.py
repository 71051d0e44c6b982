"""The environment that users get: what requirements.lock lists, torch, and nothing else.

The tests' servers run in it, so that nothing which the tests alone need can hold the server up. It
is made in seconds and without a network: the files of exactly those distributions, whose hashes
were checked when they were installed, are linked from the environment that this runs in.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import tempfile
import time
import venv
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.paths import ROOT

LOCK = ROOT / "requirements.lock"
FOLDER = ROOT / ".venv-shipped"
SECONDS_KEPT = 24 * 3600
"""An older one is another content's; a younger one may be in use beside this."""

PROJECT = "img2img-server"
"""Whose metadata the environment has; its code is the source tree's."""

CODE = f"{ROOT}\n{ROOT / 'clients' / 'python'}\n"
"""The folders that `pip install --editable .` puts on the path."""

_OF_TORCH = re.compile(r"(triton|nvidia-.+|cuda-.+)")
"""What torch's build needs besides what the lock lists."""


class NotAsLocked(Exception):
    """This environment is not what the lock lists; the message says how."""


def pins(lock: Path = LOCK) -> dict[str, str]:
    """Return the version of each distribution that a lock lists for this platform and Python."""
    lines = re.findall(r"(?m)^[A-Za-z0-9][^\\\n]*", lock.read_text())
    requirements = [Requirement(line.strip()) for line in lines]
    return {
        canonicalize_name(pin.name): next(iter(pin.specifier)).version
        for pin in requirements
        if pin.marker is None or pin.marker.evaluate()
    }


def shipped_distributions() -> dict[str, Distribution]:
    """Return the distributions of the shipped environment by name, as they are installed here.

    Raises NotAsLocked.
    """
    found = {name: _installed(name, version) for name, version in pins().items()}
    found[PROJECT] = _installed(PROJECT, "")
    torch = re.search(r'"torch==([0-9.]+)"', (ROOT / "pyproject.toml").read_text())
    assert torch is not None
    waiting = {"torch": torch[1]}
    while waiting:
        name, version = waiting.popitem()
        found[name] = _installed(name, version)
        for text in found[name].requires or ():
            need = Requirement(text)
            needed = canonicalize_name(need.name)
            holds = need.marker is None or need.marker.evaluate({"extra": ""})
            if _OF_TORCH.fullmatch(needed) and needed not in found and holds:
                waiting[needed] = ""
    return found


def shipped_environment() -> Path:
    """Return the Python of the shipped environment, which is made if it is not there yet.

    Raises NotAsLocked.
    """
    distributions = shipped_distributions()
    content = [f"{name}=={found.version}" for name, found in sorted(distributions.items())]
    text = "\n".join([CODE, sys.version, *content])
    folder = FOLDER / hashlib.sha256(text.encode()).hexdigest()[:16]
    if not folder.exists():
        _make(folder, list(distributions.values()))
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def _installed(name: str, version: str) -> Distribution:
    try:
        found = distribution(name)
    except PackageNotFoundError:
        raise NotAsLocked(f"{name} is not installed; scripts/test installs it") from None
    if version and found.version.partition("+")[0] != version:
        raise NotAsLocked(
            f"{name} {found.version} is installed, not {version}; scripts/test installs it"
        )
    return found


def _make(folder: Path, distributions: list[Distribution]) -> None:
    """Make the environment beside `folder`, then give it its name: several may try at once."""
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.iterdir():
        if old.stat().st_mtime < time.time() - SECONDS_KEPT:
            shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="making-", dir=FOLDER) as making:
        made = Path(making) / "environment"
        venv.create(made, symlinks=sys.platform != "win32", with_pip=False)
        pattern = "Lib/site-packages" if sys.platform == "win32" else "lib/*/site-packages"
        (packages,) = made.glob(pattern)
        for found in distributions:
            _link(found, packages)
        (packages / "img2img-server.pth").write_text(CODE)
        try:
            made.rename(folder)
        except OSError:
            if not folder.exists():
                raise


def _link(found: Distribution, packages: Path) -> None:
    """Link a distribution's files, but for its programs, whose first line names a Python."""
    for file in found.files or ():
        source = Path(str(found.locate_file(file)))
        if ".." in file.parts or not source.exists():
            continue
        target = packages / file
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:  # another file system
            shutil.copy2(source, target)


if __name__ == "__main__":
    print(shipped_environment())
