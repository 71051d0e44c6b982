"""Libraries that may be missing: what a setting asks for, and what this distribution requires."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.util import find_spec

from packaging.requirements import Requirement

from server.settings import Settings, environment_name

DISTRIBUTION = "img2img-server"


def _quoted(path: str) -> str:
    # cmd.exe knows no single quotes, and PowerShell takes a quoted path for a text to print.
    return subprocess.list2cmdline([path]) if os.name == "nt" else shlex.quote(path)


# Of the environment that runs: the shell's own `pip` may be another's.
PIP_INSTALL = f"{_quoted(sys.executable)} -m pip install"


@dataclass(frozen=True)
class Need:
    """A library that one setting needs, and what `pip install` takes to bring it."""

    setting: str
    module: str
    install: str
    asked: Callable[[Settings], bool]

    def in_words(self) -> str:
        return (
            f"{environment_name(self.setting)} needs {self.module}, which is not installed: "
            f'{PIP_INSTALL} "{self.install}"'
        )


NEEDS = (
    Need("quantize", "torchao", f"{DISTRIBUTION}[quantize]", lambda s: s.quantize != "off"),
    Need(
        "traces_endpoint",
        "opentelemetry.exporter.otlp.proto.http",
        f"{DISTRIBUTION}[tracing]",
        lambda s: bool(s.traces_endpoint),
    ),
    Need("ray_address", "ray", f"{DISTRIBUTION}[ray]", lambda s: bool(s.ray_address)),
    # Both come with every full install, but not where somebody picked what to install.
    Need("database_url", "asyncpg", "asyncpg", lambda s: s.accounts_url.startswith("postgres")),
    Need(
        "limits_url",
        "redis",
        "redis",
        lambda s: s.limits_url.get_secret_value().startswith("redis"),
    ),
)


def missing_extras(settings: Settings) -> list[str]:
    """Return a line with its pip command for each library that the settings need and lack."""
    return [need.in_words() for need in NEEDS if need.asked(settings) and not _is_here(need.module)]


def _is_here(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even a package that it is in
        return False


def missing_requirements() -> list[str]:
    """Return a line for each requirement of this distribution that is not met, extras left out.

    A source tree that was never installed has no list of requirements, and so none that is missing.
    """
    try:
        requirements = map(Requirement, distribution(DISTRIBUTION).requires or ())
    except PackageNotFoundError:
        return []
    here = [n for n in requirements if n.marker is None or n.marker.evaluate({"extra": ""})]
    return [
        f'{need.name} {found}: {PIP_INSTALL} "{need.name}{need.specifier}"'
        for need in here
        if (found := _unfit(need)) is not None
    ]


def _unfit(need: Requirement) -> str | None:
    """Return what is wrong with the installed distribution, or None."""
    try:
        installed = version(need.name)
    except PackageNotFoundError:
        return "is not installed"
    if need.specifier.contains(installed, prereleases=True):
        return None
    return f"{installed} is installed, which does not fit"
