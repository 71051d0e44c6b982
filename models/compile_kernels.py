"""Kernels compiled ahead of time, for cards that are not here: a first start then compiles nothing.

    python -m models.compile_kernels [75 80 ...] [--folder FOLDER] [--dtype float16]

fills FOLDER, by default the one in the environment that this package is installed in, which an
image's build does; a start takes them from there (`models/acceleration/kernel_cache.py`).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from models.acceleration.kernel_cache import CACHE_VARIABLE, COMPILED
from models.loading.checkpoint import SD15_FOLDER

CAPABILITIES = (75, 80, 86, 89, 90, 100, 120)
"""Compute capabilities of the RTX 20 and T4, of A100, of the RTX 30 and A10, of the RTX 40 and L4,
of H100 and H200, of B200, of the RTX 50."""


def fill(
    folder: Path,
    capabilities: Sequence[int] = CAPABILITIES,
    dtype: torch.dtype = torch.float16,
    configuration: Path = SD15_FOLDER,
) -> tuple[int, int]:
    """Compile all kernels that a model of ``configuration`` launches; (compiled, found) of them.

    The forwards themselves run, on tensors without memory and a driver without a card, so that the
    specialisations are those of a start. Triton must not have been imported.
    """
    os.environ[CACHE_VARIABLE] = str(folder)
    os.environ.pop("TRITON_INTERPRET", None)
    from triton import knobs
    from triton.runtime.driver import driver

    counts = {False: 0, True: 0}

    def listen(*, cache_hit: bool, **_: object) -> None:
        counts[cache_hit] += 1

    knobs.compilation.listener = listen
    for capability in capabilities:
        driver.set_active(_absent_card(capability))
        _run_forwards(dtype, configuration)
    return counts[False], counts[True]


@torch.inference_mode()
def _run_forwards(dtype: torch.dtype, configuration: Path) -> None:
    from models.acceleration.fast_forwards import KERNELS
    from models.acceleration.triton_kernels import NEXT, PROVEN, TritonKernels
    from models.acceleration.unet import FastUNet
    from models.acceleration.vae import FastVae
    from models.loading.parts import make_unet, make_vae
    from models.memory import without_weights

    kernels = TritonKernels(NEXT if KERNELS == "next" else PROVEN)

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    with torch.device("meta"):
        unet = without_weights(make_unet(configuration / "unet"), dtype).requires_grad_(False)
        vae = without_weights(make_vae(configuration / "vae"), dtype).requires_grad_(False)
    text = empty(2, 77, unet.config.cross_attention_dim)
    fast = FastUNet(unet, kernels, {})
    fast(empty(2, 4, 64, 64), torch.empty(2, device="meta"), text)
    made = FastVae(vae, kernels)
    for steps, x in ((made.encoder, empty(1, 3, 512, 512)), (made.decoder, empty(1, 4, 64, 64))):
        for step in steps:
            x = step.run(x, False)


def _absent_card(capability: int) -> Any:
    """A Triton driver of a card that is not here: kernels are compiled for it and not launched."""
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase

    class Utilities:
        def get_device_properties(self, device: int) -> dict[str, int]:
            return {"max_shared_mem": 2**30}

        def load_binary(self, *_: object) -> tuple[int, int, int, int, int]:
            return 0, 0, 0, 0, 1024  # module, function, registers, spills, threads at most

        def unload_module(self, module: object) -> None:
            pass

    class AbsentCard(DriverBase):  # type: ignore[misc]
        utils = Utilities()

        def launcher_cls(self, *_: object) -> Any:
            return lambda *arguments: None

        @classmethod
        def is_active(cls) -> bool:
            return True

        def get_current_target(self) -> Any:
            return GPUTarget("cuda", capability, 32)

        def get_current_device(self) -> int:
            return capability  # what was compiled is cached by device

        def get_current_stream(self, device: int) -> int:
            return 0

        def map_python_to_cpp_type(self, ty: str) -> str:
            raise NotImplementedError

        def get_active_torch_device(self) -> torch.device:
            return torch.device("meta")

        def get_benchmarker(self) -> Any:
            raise NotImplementedError

    return AbsentCard()


def main() -> None:
    """Fill a folder, say what was compiled."""
    parser = argparse.ArgumentParser(prog="python -m models.compile_kernels")
    parser.add_argument("capabilities", nargs="*", type=int, default=list(CAPABILITIES))
    parser.add_argument("--folder", type=Path, default=COMPILED)
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    parser.add_argument("--configuration", type=Path, default=SD15_FOLDER)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    dtype = getattr(torch, options.dtype)
    compiled, found = fill(options.folder, options.capabilities, dtype, options.configuration)
    print(f"{compiled} kernels compiled, {found} found in {options.folder}")


if __name__ == "__main__":
    main()
