"""`img2img models pull` against a hub on this machine, and that nothing is asked for afterwards."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.contract.cli_process import run, run_each
from tests.models.hub_server import REPOSITORY, REVISION, running_hub
from tests.tiny_model import write_tiny_checker, write_tiny_clip


@pytest.fixture(scope="module")
def repository(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a repository: with fp16 variants, and with what nobody needs."""
    folder = tmp_path_factory.mktemp("repository") / "files"
    shutil.copytree(tiny_folder, folder)
    for file in list(folder.rglob("*.safetensors")):
        halved = {k: v.half() if v.is_floating_point() else v for k, v in load_file(file).items()}
        save_file(halved, file.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
    # Beside it, as no real repository has it but as both are asked for: a CLIP and a checker.
    write_tiny_clip(folder.parent / "clip")
    for file in ("config.json", "model.safetensors"):
        shutil.copy(folder.parent / "clip" / file, folder / file)
    write_tiny_checker(folder / "safety_checker")
    (folder / "v1-5-pruned.ckpt").write_bytes(bytes(100))
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(bytes(100))
    return folder


def damage(cache: Path) -> None:
    """Change one byte of the U-Net's weights, as a bad disk would: their length stays."""
    (file,) = cache.rglob("unet/*.fp16.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.resolve().write_bytes(content)


@pytest.mark.slow("release")
def test_pulled_once_and_offline_afterwards(repository: Path, tmp_path: Path) -> None:
    at_revision = ["--revision", REVISION]
    with running_hub(repository) as hub:
        environment = hub.environment(tmp_path)
        pull = ["models", "pull", REPOSITORY, *at_revision]
        pulled = run(*pull, "--dtype", "float16", environment=environment)
        assert pulled.returncode == 0, pulled.stderr
        assert pulled.stdout.startswith(f"{REPOSITORY} at {REVISION}: ")
        weights = {name for name in hub.fetched if "." in name and "config" not in name}
        weights = {name for name in weights if not name.endswith((".json", ".txt"))}
        assert weights == {
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "vae/diffusion_pytorch_model.fp16.safetensors",
            "text_encoder/model.fp16.safetensors",
        }
        assert "without CLIP guidance: the hub does not give 'openai/clip" in pulled.stdout
        fetched = len(hub.fetched)
        again, wrong = run_each(
            [*pull, "--dtype", "float16"],
            ["models", "pull", REPOSITORY, "--revision", "f" * 40],
            environment=environment,
        )
        assert again.returncode == 0, again.stderr
        assert len(hub.fetched) == fetched
        damage(tmp_path)
        unsound = run(*pull, "--dtype", "float16", environment=environment)
        assert unsound.returncode == 1
        assert "unet/diffusion_pytorch_model.fp16.safetensors" in unsound.stderr
        assert "Pull again" in unsound.stderr
        mended = run(*pull, "--dtype", "float16", environment=environment)
        assert mended.returncode == 0, mended.stderr
        assert len(hub.fetched) == fetched + 1
        fetched += 1
        assert wrong.returncode == 1
        assert f"{REPOSITORY!r} at revision 'ffff" in wrong.stderr
        assert len(hub.fetched) == fetched
        beside = {"IMG2IMG_CLIP_MODEL": REPOSITORY, "IMG2IMG_SAFETY": "block"}
        all_of_it = run(*pull, environment=environment | beside)
        assert all_of_it.returncode == 0, all_of_it.stderr
        assert f"CLIP guidance: {REPOSITORY}" in all_of_it.stdout
        assert f"safety checker: {REPOSITORY}" in all_of_it.stdout
        assert {"model.safetensors", "safety_checker/model.safetensors"} <= set(hub.fetched)
    # The hub is gone.
    doctor, other = run_each(
        ["doctor", "--model", REPOSITORY, "--model-revision", REVISION],
        ["models", "pull", "someone/else"],
        environment=environment,
    )
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    assert f"snapshots/{REVISION}" in doctor.stdout
    assert other.returncode == 1
    assert "the hub cannot be reached" in other.stderr


def test_what_is_not_fetched(tiny_folder: Path, tmp_path: Path) -> None:
    said = {
        str(tiny_folder): "is here already",
        "embedded": "is here already",
        "no hub id": "is no hub id",
    }
    *refused, default = run_each(
        *(["models", "pull", model] for model in said),
        ["models", "pull"],
        environment={"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)},
    )
    for done, words in zip(refused, said.values(), strict=True):
        assert done.returncode == 2
        assert words in done.stderr
    assert default.returncode == 1
    assert "stable-diffusion-v1-5/stable-diffusion-v1-5" in default.stderr
