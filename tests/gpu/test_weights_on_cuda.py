"""Weights go straight to the device. Skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.loading.loader import ModelSpec, load_model
from scripts.checkpoints.random_checkpoint import converted_by_diffusers, write_checkpoint
from tests.models.narrow import write_configuration

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]


def test_a_checkpoint_on_cuda_is_the_file(tmp_path: Path) -> None:
    narrow = write_configuration(tmp_path / "configuration")
    path = tmp_path / "model.safetensors"
    write_checkpoint(path, narrow)
    bundle = load_model(ModelSpec(str(path)), device="cuda", configuration=narrow)
    assert bundle.dtype is torch.float16
    for part, tensors in converted_by_diffusers(path, narrow).items():
        for name, value in getattr(bundle, part).state_dict().items():
            assert value.is_cuda
            assert torch.equal(value.cpu(), tensors[name]), name
