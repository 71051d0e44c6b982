"""Checkpoints in one file: every tensor, what they say of themselves, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.bundle import ModelBundle
from models.loading.loader import ModelLoadError, ModelSpec, load_model
from models.noise_schedule import NoiseSchedule
from pipelines.engine.engine import Engine, EngineConfig
from pipelines.request import GenerationRequest, Pixels
from scripts.checkpoints.random_checkpoint import converted_by_diffusers, to_ldm, write_checkpoint

pytestmark = pytest.mark.process


def load(path: Path, narrow: Path, dtype: str = "float32", **options: object) -> ModelBundle:
    spec = ModelSpec(str(path), **options)  # type: ignore[arg-type]
    return load_model(spec, device="cpu", dtype=dtype, configuration=narrow)


def assert_equal(bundle: ModelBundle, parts: dict[str, dict[str, torch.Tensor]]) -> None:
    for part in ("unet", "vae", "text_encoder"):
        ours = getattr(bundle, part).state_dict()
        assert ours.keys() == parts[part].keys()
        for name, tensor in parts[part].items():
            assert torch.equal(ours[name], tensor.to(bundle.dtype)), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("ema", [False, True])
def test_every_tensor_is_what_diffusers_makes_of_the_file(
    narrow: Path, tmp_path: Path, dtype: torch.dtype, ema: bool
) -> None:
    path = tmp_path / "model.safetensors"
    written = write_checkpoint(path, narrow, dtype=dtype, ema=True)
    bundle = load(path, narrow, ema=ema)
    assert_equal(bundle, converted_by_diffusers(path, narrow, ema=ema))
    if ema:
        written = written | {"unet": written["ema"]}
    assert_equal(bundle, {part: written[part] for part in ("unet", "vae", "text_encoder")})
    assert not any(p.requires_grad for p in bundle.unet.parameters())
    assert not bundle.unet.training
    assert bundle.facts["unet"].startswith("its averaged" if ema else "the trained one")


def test_a_file_without_ema_keys(narrow: Path, checkpoint_file: Path) -> None:
    bundle = load(checkpoint_file, narrow, dtype="bfloat16")
    assert bundle.name == "narrow"
    assert bundle.unet.dtype is bundle.vae.dtype is bundle.text_encoder.dtype is torch.bfloat16
    assert_equal(bundle, converted_by_diffusers(checkpoint_file, narrow))
    with pytest.raises(ModelLoadError, match="no averaged"):
        load(checkpoint_file, narrow, ema=True)


def test_the_older_names_of_the_text_encoder(
    narrow: Path, checkpoint_file: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old.safetensors"
    save_file(
        {k.replace("transformer.text_model.", "transformer."): v
         for k, v in load_file(checkpoint_file).items()},
        old,
    )  # fmt: skip
    assert_equal(load(old, narrow), converted_by_diffusers(checkpoint_file, narrow))


@pytest.mark.parametrize(
    ("metadata", "mark", "asked", "expected"),
    [
        (None, False, "auto", "epsilon"),
        ({"modelspec.prediction_type": "epsilon"}, False, "auto", "epsilon"),
        ({"modelspec.prediction_type": "v"}, False, "auto", "v_prediction"),
        (None, True, "auto", "v_prediction"),
        (None, False, "v_prediction", "v_prediction"),
        ({"modelspec.prediction_type": "v"}, False, "epsilon", "epsilon"),
    ],
)
def test_what_the_unet_predicts(
    narrow: Path,
    checkpoint_file: Path,
    tmp_path: Path,
    metadata: dict[str, str] | None,
    mark: bool,
    asked: str,
    expected: str,
) -> None:
    path = tmp_path / "model.safetensors"
    marks = {"v_pred": torch.empty(0), "ztsnr": torch.empty(0)} if mark else {}
    save_file(load_file(checkpoint_file) | marks, path, metadata=metadata)
    bundle = load(path, narrow, prediction=asked)
    assert bundle.scheduler_config["prediction_type"] == expected
    assert bundle.facts["predicts"].startswith(expected)
    assert ("schedule" in bundle.facts) == mark
    sigmas = NoiseSchedule.from_config(bundle.scheduler_config).sigmas
    assert sigmas[-1] == pytest.approx(4096 if mark else 14.6146, rel=1e-4)


def test_a_setting_says_that_the_noise_went_to_its_end(
    narrow: Path, checkpoint_file: Path, tiny_folder: Path
) -> None:
    folder = ModelSpec(str(tiny_folder), zero_terminal_snr=True)
    for bundle in (
        load(checkpoint_file, narrow, zero_terminal_snr=True),
        load_model(folder, device="cpu"),
    ):
        sigmas = NoiseSchedule.from_config(bundle.scheduler_config).sigmas
        assert sigmas[-1] == pytest.approx(4096, rel=1e-4)
        assert bundle.facts["schedule"] == "to zero terminal SNR (IMG2IMG_ZERO_TERMINAL_SNR)"


def beside(checkpoint_file: Path, folder: Path, content: bytes | str, **metadata: str) -> Path:
    """A checkpoint with a configuration of its name beside it."""
    path = folder / "some.model.safetensors"
    save_file(load_file(checkpoint_file), path, metadata=metadata)
    content = content if isinstance(content, bytes) else content.encode()
    (folder / "some.model.yaml").write_bytes(content)
    return path


A1111_V = """\
# v-prediction, as A1111 has it beside v2-inference-v
model:
  base_learning_rate: 1.0e-4
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    parameterization: %s
    linear_start: 0.00085
    unet_config: &unet
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
    again: *unet
    code: !!python/object/apply:os.system ["exit 1"]
"""
SAYS_V = {"modelspec.prediction_type": "v"}


@pytest.mark.parametrize(
    ("content", "metadata", "expected"),
    [
        (A1111_V % '"v"', {}, "v_prediction (some.model.yaml beside the file)"),
        (A1111_V % "v  # so A1111 says it", {}, "v_prediction (some.model.yaml beside the file)"),
        (A1111_V % "eps", SAYS_V, "epsilon (some.model.yaml beside the file)"),
        (A1111_V % "null", SAYS_V, "v_prediction (the file's metadata)"),
        ("model:\n  params: [1, 2]\n", SAYS_V, "v_prediction (the file's metadata)"),
        ("model:\n  params:\n    v: 1\n", {}, "epsilon (the usual, the file does not say)"),
        ("just text", {}, "epsilon (the usual, the file does not say)"),
        ("", {}, "epsilon (the usual, the file does not say)"),
    ],
)
def test_a_configuration_beside_the_file_says_what_the_unet_predicts(
    narrow: Path,
    checkpoint_file: Path,
    tmp_path: Path,
    content: str,
    metadata: dict[str, str],
    expected: str,
) -> None:
    bundle = load(beside(checkpoint_file, tmp_path, content, **metadata), narrow)
    assert bundle.facts["predicts"] == expected
    assert bundle.scheduler_config["prediction_type"] == expected.split()[0]


MERGES = "a: &x0 {k: v}\n" + "".join(
    f"b{i}: &x{i + 1} {{<<: [{', '.join([f'*x{i}'] * 9)}]}}\n" for i in range(12)
)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (A1111_V % "x0", "its parameterization 'x0' is not eps or v"),
        (A1111_V % "[v]", r"its parameterization .* is not eps or v"),
        ("model: {", "while parsing"),
        ("[" * 60_000, "recursion"),
        ("# " + "x" * 70_000, "larger than 64 KiB"),
        (b"\xff\xfe\x00", "."),
        (b"\x89PNG\r\n", "."),
        ("a: 1\n---\nb: 2\n", "expected a single document"),
    ],
)
def test_a_configuration_that_is_no_use_is_a_reason_and_the_setting_a_way_out(
    narrow: Path, checkpoint_file: Path, tmp_path: Path, content: str | bytes, reason: str
) -> None:
    path = beside(checkpoint_file, tmp_path, content)
    with pytest.raises(ModelLoadError, match=rf"some\.model\.yaml.*not usable.*{reason}"):
        load(path, narrow)
    assert load(path, narrow, prediction="epsilon").facts["predicts"].startswith("epsilon")


def test_a_configuration_of_merges_without_end_is_not_followed(
    narrow: Path, checkpoint_file: Path, tmp_path: Path
) -> None:
    path = beside(checkpoint_file, tmp_path, MERGES + A1111_V % "v")
    assert load(path, narrow).facts["predicts"].startswith("v_prediction")


def test_a_setting_overrules_a_folder(tiny_folder: Path) -> None:
    bundle = load_model(ModelSpec(str(tiny_folder), prediction="v_prediction"), device="cpu")
    assert bundle.scheduler_config["prediction_type"] == "v_prediction"


def test_a_picture_is_made_of_it_and_depends_on_the_prediction(
    narrow: Path, checkpoint_file: Path, picture: Pixels
) -> None:
    # Weights drawn at random move a small picture by less than a level of 256.
    picture = np.pad(picture, ((0, 192), (0, 192), (0, 0)), mode="wrap")
    pictures = []
    for prediction in ("epsilon", "v_prediction"):
        engine = Engine(
            load(checkpoint_file, narrow, prediction=prediction), EngineConfig(warm_up=False)
        )
        engine.start()
        request = GenerationRequest(picture, "a photo of a cat", steps=10, seed=3)
        pictures.append(engine.submit(request).wait(60).image)
        engine.drain(grace=5)
    assert pictures[0].shape == picture.shape
    assert np.abs(pictures[0].astype(int) - pictures[1]).max() > 0


def _without(path: Path, out: Path, prefix: str) -> Path:
    save_file({k: v for k, v in load_file(path).items() if not k.startswith(prefix)}, out)
    return out


def test_incomplete_files_are_named_for_what_they_lack(
    narrow: Path, checkpoint_file: Path, tmp_path: Path
) -> None:
    for prefix, reason in [
        ("first_stage_model.", "has no VAE: name one with IMG2IMG_VAE"),
        ("cond_stage_model.", "has no text encoder"),
        ("model.diffusion_model.output_blocks.3.", r"lacks \d+ of \d+ tensors"),
    ]:
        part = _without(checkpoint_file, tmp_path / "part.safetensors", prefix)
        with pytest.raises(ModelLoadError, match=reason):
            load(part, narrow)


def test_a_file_of_another_size_is_refused(
    narrow: Path, checkpoint_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelLoadError, match=r"not of Stable Diffusion 1\.x"):
        load_model(ModelSpec(str(checkpoint_file)), device="cpu")
    tensors = load_file(checkpoint_file)
    tensors["model.diffusion_model.time_embed.0.weight"] = torch.zeros(64, 7)
    path = tmp_path / "other.safetensors"
    save_file(tensors, path)
    with pytest.raises(ModelLoadError, match=r"time_embed\.0\.weight has shape \(64, 7\)"):
        load(path, narrow)


def test_values_that_are_not_finite_are_refused(
    narrow: Path, tmp_path: Path, checkpoint_file: Path
) -> None:
    tensors = load_file(checkpoint_file)
    tensors["model.diffusion_model.out.2.bias"][1] = float("nan")
    path = tmp_path / "nan.safetensors"
    save_file(tensors, path)
    with pytest.raises(ModelLoadError, match=r"out\.2\.bias holds NaN or infinity in float32"):
        load(path, narrow)


def test_reading_in_many_spans_is_reading_at_once(
    narrow: Path, checkpoint_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from models.loading import weights_file

    monkeypatch.setattr(weights_file, "_SPAN", 10_000)
    assert_equal(load(checkpoint_file, narrow), converted_by_diffusers(checkpoint_file, narrow))


def test_names_of_the_original_layout(narrow: Path) -> None:
    """A few names that everyone who has opened such a file knows."""
    tensors = {
        "conv_in.weight": torch.zeros(1),
        "mid_block.attentions.0.norm.weight": torch.ones(1),
    }
    names = to_ldm({"unet": tensors, "vae": {}, "text_encoder": {}}, narrow)
    assert "model.diffusion_model.input_blocks.0.0.weight" in names
    assert "model.diffusion_model.middle_block.1.norm.weight" in names
