"""Kernels compiled ahead of time. Triton's compiler needs no card; only launching does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.acceleration.kernel_cache import use_compiled
from tests.models.narrow import write_configuration

pytestmark = pytest.mark.process

pytest.importorskip("triton")


SCRIPT = """
import os
from pathlib import Path
from models.acceleration.kernel_cache import use_compiled
from models.compile_kernels import fill
image, cache, narrow = map(Path, {paths!r})
first = fill(image, [90], configuration=narrow)
os.environ["TRITON_CACHE_DIR"] = str(cache)
copied = [use_compiled(image), use_compiled(image)]
# As in a new process, which remembers nothing.
from models.acceleration import kernels
for kernel in vars(kernels).values():
    if hasattr(kernel, "device_caches"):
        kernel.device_caches.clear()
print(*first, *copied, *fill(cache, [90], configuration=narrow))
"""


@pytest.mark.slow("checkpoints")
def test_what_was_compiled_for_a_card_is_found_at_a_start(tmp_path: Path) -> None:
    configuration = write_configuration(tmp_path / "narrow")
    alike = {"block_out_channels": [32] * 4, "norm_num_groups": 8}  # few kernels to compile
    for part in ("unet", "vae"):
        path = configuration / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | alike))
    image, cache = tmp_path / "image", tmp_path / "cache"
    image.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(paths=[*map(str, (image, cache, configuration))])],
        env=os.environ | {"TRITON_INTERPRET": "1"},  # as under test: it is not to matter
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    made, found, copied, copied_again, made_again, found_again = map(int, done.stdout.split())
    assert made > 10
    # Into the cache that Triton writes to, once; there it looks for them.
    assert (copied, copied_again) == (made, 0)
    assert (made_again, found_again) == (0, made + found)
    for name in ("gn_partial", "gn_fold", "gn_apply", "bias_residual", "geglu", "layer_norm"):
        kernels = list(image.glob(f"*/{name}.json"))
        targets = [json.loads(path.read_text())["target"] for path in kernels]
        assert {(target["backend"], target["arch"]) for target in targets} == {("cuda", 90)}
        assert all(path.with_suffix(".cubin").stat().st_size for path in kernels)


def test_without_compiled_kernels_or_a_cache_a_start_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert use_compiled(tmp_path / "none") == 0
    (tmp_path / "image" / "a kernel").mkdir(parents=True)
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert use_compiled(tmp_path / "image") == 0
    assert "could not be copied" in caplog.text


def test_a_kernel_that_is_there_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, cache = tmp_path / "image", tmp_path / "cache"
    for folder, text in ((image / "one", "new"), (image / "two", "new"), (cache / "one", "old")):
        folder.mkdir(parents=True)
        (folder / "kernel.json").write_text(text)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(cache))
    assert use_compiled(image) == 1
    assert (cache / "one" / "kernel.json").read_text() == "old"
    assert (cache / "two" / "kernel.json").read_text() == "new"
    assert {path.name for path in cache.iterdir()} == {"one", "two"}
