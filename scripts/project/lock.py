"""Lock: resolve pyproject.toml and write the two pinned lists, with the hash of every file.

The lists hold for every platform and each Python from 3.11 on: markers say what is for some alone,
and the hashes are those of all wheels and sdists of a version, so that each pip finds its own.
torch and what its build alone needs stay out: which build it is, is the machine's to choose.

Pins that still fit stay as they are; `scripts/lock --upgrade` takes the newest.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from scripts.paths import ROOT

SHIPPED, TESTS = ROOT / "requirements.lock", ROOT / "requirements-test.lock"
EXTRAS = {SHIPPED: ("heif",), TESTS: ("heif", "test", "bench", "fuzz", "deploy", "tracing")}

RESOLVER = "uv==0.13.9"
"""It reads metadata alone, which `pip lock` does not, and no other resolves for all platforms."""

OPTIONS = [
    *("--universal", "--python-version", "3.11", "--fork-strategy", "fewest"),
    *("--generate-hashes", "--no-header", "--no-annotate", "--no-config", "--quiet"),
]
OF_TORCH = re.compile(r"(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)==")


def pins(text: str) -> list[str]:
    """Return each pin of a lock file with its marker and hashes, in the file's order."""
    return [pin for pin in re.split(r"(?m)^(?=[A-Za-z0-9])", text) if pin.strip()]


def resolved(resolver: Path, work: Path, lock: Path, arguments: list[str]) -> list[str]:
    """Return the pins of `lock`'s extras; those that it holds now are preferred."""
    draft = work / lock.name
    held = SHIPPED.read_text() + TESTS.read_text()
    draft.write_text(held if lock is TESTS else SHIPPED.read_text())
    extras = [word for extra in EXTRAS[lock] for word in ("--extra", extra)]
    command = [str(resolver), "pip", "compile", "pyproject.toml", "-o", str(draft)]
    subprocess.run([*command, *OPTIONS, *extras, *arguments], check=True, cwd=ROOT)
    return [pin for pin in pins(draft.read_text()) if not OF_TORCH.match(pin)]


def main() -> None:
    """Resolve and write both lists; arguments go to the resolver."""
    arguments = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        venv.create(work / "venv", with_pip=True)
        programs = work / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
        install = [str(programs / "python"), "-m", "pip", "install", "--quiet", RESOLVER]
        subprocess.run(install, check=True)
        shipped = resolved(programs / "uv", work, SHIPPED, arguments)
        SHIPPED.write_text("".join(shipped))
        tests = resolved(programs / "uv", work, TESTS, ["--constraint", str(SHIPPED), *arguments])
        TESTS.write_text("".join(pin for pin in tests if pin not in shipped))
    print(f"{SHIPPED.name}: {len(pins(SHIPPED.read_text()))} pins")
    print(f"{TESTS.name}: {len(pins(TESTS.read_text()))} pins")


if __name__ == "__main__":
    main()
