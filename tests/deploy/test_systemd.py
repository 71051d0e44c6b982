"""The unit, as systemd reads it; nothing is started."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from server.cli.shared import USAGE_ERROR
from server.serve import SEND_SECONDS, THREAD_SECONDS
from tests.deploy.chart import ROOT

UNIT = ROOT / "deploy" / "systemd" / "img2img-server.service"


def value(name: str) -> str:
    (found,) = re.findall(rf"(?m)^{name}=(.*)$", UNIT.read_text(encoding="utf-8"))
    return str(found)


@pytest.fixture
def unit(tmp_path: Path) -> str:
    """The unit with a program that is here."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here")
    copy = tmp_path / UNIT.name
    text = UNIT.read_text(encoding="utf-8")
    copy.write_text(text.replace("/opt/img2img/bin/img2img", shutil.which("true") or "/bin/true"))
    return str(copy)


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_systemd_has_nothing_against_it(unit: str) -> None:
    done = analyze("verify", unit)
    assert done.returncode == 0 and unit not in done.stderr, done.stderr


def test_its_installation_names_files_where_a_checkout_has_them() -> None:
    head = UNIT.read_text(encoding="utf-8").partition("[Unit]")[0]
    words = " ".join(re.findall(r"(?m)^#   (.*)$", head)).split()
    named = {word for word in words if re.fullmatch(r"[\w.-][\w./-]*\.(lock|service|whl)", word)}
    assert named == {"requirements.lock", "deploy/systemd/img2img-server.service"}
    assert "scripts/build" in words
    assert all((ROOT / name).is_file() for name in (*named, "scripts/build"))


def test_it_is_hardened(unit: str) -> None:
    """`systemd-analyze security` calls an exposure below 2 of 10 OK."""
    done = analyze("security", "--offline=true", "--threshold=20", unit)
    if "nknown" in done.stderr or "not supported" in done.stderr:
        pytest.skip(f"this systemd judges no files: {done.stderr.strip()}")
    assert done.returncode == 0, done.stdout


def test_it_has_its_time_to_stop() -> None:
    grace = float(value("Environment=IMG2IMG_GRACE_PERIOD"))
    assert float(value("TimeoutStopSec")) > grace + SEND_SECONDS + THREAD_SECONDS
    assert value("KillMode") == "mixed", "decoders must not get the server's SIGTERM"


def test_a_wrong_setting_does_not_start_it_again_and_again() -> None:
    assert value("RestartPreventExitStatus") == str(USAGE_ERROR)


def test_all_that_is_written_is_in_its_own_folders() -> None:
    text = UNIT.read_text(encoding="utf-8")
    folders = re.findall(r"(?m)^Environment=\w+=(/.*)$", text)
    assert len(folders) == 6
    owned = (f"/var/lib/{value('StateDirectory')}", f"/var/cache/{value('CacheDirectory')}")
    assert all(folder.startswith(owned) for folder in folders)
    assert value("ProtectSystem") == "strict"
