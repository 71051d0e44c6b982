"""Kernels that were compiled ahead of time are copied whole, whoever else copies them."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from models.acceleration.kernel_cache import use_compiled


@pytest.fixture
def compiled(tmp_path: Path) -> Path:
    folder = tmp_path / "compiled"
    for name in ("first", "second"):
        (folder / name).mkdir(parents=True)
        (folder / name / "kernel.cubin").write_text(name)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_the_cache_lacks_is_copied_once(compiled: Path, cache: Path) -> None:
    assert [use_compiled(compiled), use_compiled(compiled)] == [2, 0]
    assert (cache / "second" / "kernel.cubin").read_text() == "second"
    assert {path.name for path in cache.iterdir()} == {"first", "second"}


def test_two_processes_may_copy_at_once(
    compiled: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    copy = shutil.copytree

    def while_another_is_faster(kernel: Path, target: Path) -> Any:
        copy(kernel, cache / kernel.name)
        return copy(kernel, target)

    monkeypatch.setattr(shutil, "copytree", while_another_is_faster)
    with caplog.at_level(logging.WARNING):
        assert use_compiled(compiled) == 0
    assert caplog.records == []
    assert {path.name for path in cache.iterdir()} == {"first", "second"}
