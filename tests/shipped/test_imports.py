"""Whatever the three packages import, and what libraries import for them, is in requirements.lock.

A library that only the tests need would hide from them that the product needs it as well.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from scripts.paths import ROOT
from scripts.project.shipped_environment import shipped_distributions, shipped_environment
from server.extras import NEEDS
from tests.shipped.reach import PACKAGES, imports, sources

# Triton comes with torch where torch is built for CUDA; without it the modules run as they are. The
# Python client is a distribution of its own, there in a checkout.
LEFT_OUT = {need.module.partition(".")[0] for need in NEEDS if "[" in need.install}
LEFT_OUT |= {"triton", "img2img_client"}

NOT_NEEDED = {
    "_pytest": "torch looks whether a test runs it",
    "google": "protobuf, which the traces' exporter brings; transformers reads tokenizers with it",
    "importlib_resources": "tqdm's command line finds its manual with it before Python 3.9",
    "matplotlib": "tqdm and torch draw with it when they are asked to",
    "mpl_toolkits": "comes with matplotlib",
    "pylab": "comes with matplotlib",
    "peft": "diffusers loads LoRAs with it; models/loading/lora.py does here",
    "pytest": "numpy tests itself with it",
    "scipy": "diffusers' LMS and beta schedules take it, and losses of transformers' training",
    "sniffio": "anyio tells it the event loop's name where it is there",
}
"""What is here for the tests and asked for by libraries that we reach, and why no user has it."""

Reached = dict[str, list[str]]


@pytest.fixture(scope="module")
def reached() -> Reached:
    command = [str(shipped_environment()), "-m", "tests.shipped.reach", *LEFT_OUT]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found: Reached = json.loads(done.stdout.splitlines()[-1])
    return found


def not_shipped(modules: set[str]) -> set[str]:
    """Those of the top-level modules that are installed here, but not for users."""
    shipped, installed = set(shipped_distributions()), packages_distributions()
    return {
        module
        for module in modules - sys.stdlib_module_names - set(PACKAGES)
        if module in installed
        and shipped.isdisjoint(canonicalize_name(name) for name in installed[module])
    }


def test_what_is_imported_is_shipped() -> None:
    """However deep in a function it is; all but what an extra or torch brings."""
    modules = {
        module.partition(".")[0] for file in sources(ROOT) for module, _ in imports(file)
    } - set(sys.stdlib_module_names)
    assert {"torch", "diffusers", "psutil", "pillow_heif", "alembic"} <= modules  # lazy ones too
    unknown = modules - set(packages_distributions()) - set(PACKAGES)
    assert unknown - LEFT_OUT == set()
    assert not_shipped(modules) - LEFT_OUT == set()


def test_all_of_it_can_be_imported_and_used_as_it_is_shipped(reached: Reached) -> None:
    """Samplers, the model with CLIP, databases, limits, uvicorn's loops, HEIC."""
    assert reached["failures"] == []


@pytest.mark.slow("release")
def test_what_libraries_ask_for_is_shipped_or_known_not_to_be_needed(reached: Reached) -> None:
    files = [Path(file) for file in reached["files"]]
    assert any(file.name == "scheduling_euler_discrete.py" for file in files)
    names = sorted(not_shipped(set(packages_distributions())))
    mentions = re.compile(rf"(?:import|from)[ \t]+(?:{'|'.join(map(re.escape, names))})\b")
    asked = {
        module.partition(".")[0]
        for file in files
        if mentions.search(file.read_text(encoding="utf-8", errors="replace"))
        for module, _ in imports(file)
    }
    assert not_shipped(asked) - LEFT_OUT == set(NOT_NEEDED)
