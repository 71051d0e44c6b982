"""The noise schedule of a scheduler_config.json: what is honoured, and what is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest

from models.errors import ModelLoadError
from models.loading.loader import ModelSpec, load_model
from models.noise_schedule import NoiseSchedule


def folder_with(tiny_folder: Path, tmp_path: Path, **changed: Any) -> str:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    return str(folder)


@pytest.mark.parametrize(
    ("scheduler", "name"),
    [
        *(("DDPMScheduler", n) for n in ("linear", "scaled_linear", "squaredcos_cap_v2")),
        *(("DDPMScheduler", n) for n in ("sigmoid", "laplace")),
        ("HeunDiscreteScheduler", "exp"),
    ],
)
@pytest.mark.parametrize("zero_snr", [False, True])
def test_alphas_are_those_of_diffusers(scheduler: str, name: str, zero_snr: bool) -> None:
    config: dict[str, Any] = {"beta_start": 0.001, "beta_end": 0.015, "beta_schedule": name}
    own = getattr(diffusers, scheduler)(**config)
    alphas = own.alphas_cumprod
    if zero_snr:
        from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

        alphas = (1 - rescale_zero_terminal_snr(own.betas)).cumprod(0)
    got = NoiseSchedule.from_config({**config, "rescale_betas_zero_snr": zero_snr}).alphas_cumprod
    assert np.allclose(got[:-1], alphas[:-1], rtol=2e-3, atol=1e-8)
    if zero_snr:
        assert got[-1] == (2**-24 if got[-2] > 2**-24 else got[-2] / 2)
    else:
        assert got[-1] == pytest.approx(float(alphas[-1]), rel=2e-3)


@pytest.mark.process
@pytest.mark.parametrize(
    ("changed", "sigma"),
    [
        ({"rescale_betas_zero_snr": True}, 4096),
        ({"trained_betas": [0.001] * 1000}, np.sqrt(1 / 0.999**1000 - 1)),
        ({"rescale_betas_zero_snr": None, "trained_betas": None}, 14.6146),
        ({"sigma_max": None, "use_karras_sigmas": True, "use_flow_sigmas": False}, 14.6146),
    ],
)
def test_a_folder_is_believed(
    tiny_folder: Path, tmp_path: Path, changed: dict[str, Any], sigma: float
) -> None:
    bundle = load_model(ModelSpec(folder_with(tiny_folder, tmp_path, **changed)), device="cpu")
    schedule = NoiseSchedule.from_config(bundle.scheduler_config)
    assert schedule.sigmas[-1] == pytest.approx(sigma, rel=1e-4)
    assert ("schedule" in bundle.facts) == schedule.rescale_betas_zero_snr


@pytest.mark.process
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prediction_type", "sample"),
        ("prediction_type", None),
        ("prediction_type", ["epsilon"]),
        ("beta_schedule", "piecewise"),
        ("beta_schedule", None),
        ("beta_schedule", ["linear"]),
        ("beta_start", "0.1"),
        ("beta_start", True),
        ("beta_end", None),
        ("beta_end", float("nan")),
        ("beta_end", 2),
        ("num_train_timesteps", 100),
        ("num_train_timesteps", 1e3),
        ("rescale_betas_zero_snr", "yes"),
        ("trained_betas", [0.1] * 999),
        ("trained_betas", [0.1] * 999 + ["x"]),
        ("trained_betas", [0.5] * 1000),
        ("trained_betas", "betas.npy"),
        ("snr_shift_scale", 3.0),
        ("timestep_type", "continuous"),
        ("use_flow_sigmas", True),
        ("shift", 3.0),
        ("sigma_data", 0.5),
        ("predict_epsilon", False),
    ],
)
def test_what_is_not_understood_is_refused_by_name(
    tiny_folder: Path, tmp_path: Path, key: str, value: Any
) -> None:
    folder = folder_with(tiny_folder, tmp_path, **{key: value})
    with pytest.raises(ModelLoadError, match=rf"scheduler_config.json: {key}: ") as caught:
        load_model(ModelSpec(folder), device="cpu")
    if not isinstance(value, list):
        assert repr(value) in str(caught.value)


@pytest.mark.process
def test_a_setting_mends_a_prediction(tiny_folder: Path, tmp_path: Path) -> None:
    folder = folder_with(tiny_folder, tmp_path, prediction_type=None)
    bundle = load_model(ModelSpec(folder, prediction="v_prediction"), device="cpu")
    assert bundle.facts["predicts"] == "v_prediction (IMG2IMG_PREDICTION)"


WRITERS = (
    *("DDIMScheduler", "DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler"),
    *("DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler"),
    *("HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler"),
    *("LCMScheduler", "LMSDiscreteScheduler", "PNDMScheduler", "TCDScheduler"),
    *("UniPCMultistepScheduler", "SASolverScheduler"),
)


@pytest.mark.parametrize("name", WRITERS)
def test_what_diffusers_schedulers_write_for_stable_diffusion_is_taken(name: str) -> None:
    """Each has keys of its own, at values that change nothing."""
    kind = getattr(diffusers, name)
    config = kind(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").config
    written = json.loads(json.dumps(dict(config)))
    assert NoiseSchedule.from_config(written).sigmas[-1] == pytest.approx(14.6146, rel=1e-4)
