"""Linear layers in int8 and fp8: served through the modules, which is said, and near them."""

from __future__ import annotations

import pytest
import torch

from models.acceleration.fast_forwards import FACT
from models.acceleration.quantization import check_quantization, quantize_unet
from models.errors import ModelLoadError
from models.spec import Quantization
from scripts.benchmarks.gpu.forwards import relative_error, unet_inputs
from tests.gpu.rig import Rig, images

MOST = {"int8": 0.1, "fp8": 0.15}
"""Of one forward of random weights against the same in bfloat16."""


@pytest.mark.parametrize("kind", list(MOST))
def test_quantised_layers_are_near_the_plain_ones_and_are_served(
    rig: Rig, kind: Quantization
) -> None:
    pytest.importorskip("torchao")
    try:
        check_quantization(kind, rig.device, torch.bfloat16)
    except ModelLoadError as reason:
        pytest.skip(str(reason))
    bundle = rig.bundle(torch.bfloat16)
    inputs = unet_inputs(bundle, rig.scale, 2)
    with torch.inference_mode():
        want = bundle.predict(*inputs, False)
    quantize_unet(bundle.unet, kind, bundle.device)
    with torch.inference_mode():
        assert 0 < relative_error(bundle.predict(*inputs, False), want) < MOST[kind]
    with rig.engine(bundle) as engine:
        assert "U-Net by its modules" in bundle.facts[FACT]
        images([engine.submit(rig.ask(seed)) for seed in (1, 2, 3)])
