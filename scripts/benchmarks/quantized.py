"""Print what quantised linear layers change in pictures and in time.

The same requests, one at a time, on the plain model in full precision, in bfloat16 (as a yardstick)
and on the quantised one: PSNR and worst difference of the 8-bit pictures, largest difference of the
final latents, and the denoising's time, all against full precision. Needs no network, and torchao.

.venv/bin/python scripts/compare_quantized                                # int8, on the CPU
.venv/bin/python scripts/compare_quantized --device cuda --quantize fp8
"""

from __future__ import annotations

import argparse
import statistics
import sys
from typing import Any

import numpy as np
import torch

from models.bundle import stored_bytes
from models.errors import ModelLoadError
from models.loading.loader import load_model
from models.spec import EMBEDDED, ModelSpec, Quantization
from pipelines.engine import model_runner
from pipelines.engine.engine import Engine, EngineConfig
from pipelines.request import GenerationRequest, Pixels, Sampler
from pipelines.vae.decode import Decoding

REQUESTS = (
    ("a blue circle", Sampler.K_DPMPP_2M, 0.35),
    ("a green square in the snow", Sampler.K_EULER_ANCESTRAL, 0.5),
    ("a yellow star at night", Sampler.DDIM, 0.35),
    ("a red circle", Sampler.K_HEUN, 0.1),
)
"""Prompt, sampler, image strength."""


def input_picture(size: int) -> Pixels:
    """A red disc on a light sky."""
    y, x = np.mgrid[0:size, 0:size] / size
    image = np.full((size, size, 3), (170, 205, 240), dtype=np.uint8)
    image[(x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.06] = (215, 40, 40)
    return image


def psnr(one: Pixels, other: Pixels) -> float:
    """Of two 8-bit pictures, in dB."""
    error = float(np.mean((one.astype(np.float64) - other) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


class Variant:
    """An engine, and the final latents of what it made."""

    def __init__(self, name: str, spec: ModelSpec, device: str, dtype: str) -> None:
        self.name = name
        self.bundle = load_model(spec, device=device, dtype=dtype)
        # Nothing to measure costs for: there is one request at a time.
        self.engine = Engine(self.bundle, EngineConfig(warm_up=False))
        self.engine.start()
        self.unet_bytes = sum(stored_bytes(p) for p in self.bundle.unet.parameters())

    def make(self, request: GenerationRequest) -> tuple[Pixels, torch.Tensor, float]:
        """(picture, final latents (4, h, w), seconds of denoising)."""
        seen: list[torch.Tensor] = []
        decoding = Decoding

        def keeping(bundle: Any, latents: torch.Tensor, *rest: Any) -> Any:
            seen.append(latents.float().cpu())
            return decoding(bundle, latents, *rest)

        model_runner.Decoding = keeping  # type: ignore[assignment, attr-defined]
        try:
            result = self.engine.submit(request).wait(600)
        finally:
            model_runner.Decoding = decoding  # type: ignore[attr-defined]
        return result.image, seen[-1], result.timings["denoise"]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", help="of the reference, and of int8")
    parser.add_argument("--quantize", choices=["int8", "fp8"], default="int8")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=1, help="of which the median time counts")
    options = parser.parse_args()
    kind: Quantization = options.quantize
    # fp8 is there in bfloat16 alone.
    dtypes = ["bfloat16"] if kind == "fp8" else list(dict.fromkeys([options.dtype, "bfloat16"]))
    wanted = [(options.dtype, "off")]
    wanted += [("bfloat16", "off")] * (options.dtype != "bfloat16")
    wanted += [(dtype, kind) for dtype in dtypes]
    try:
        reference, *others = [
            Variant(
                dtype if quantize == "off" else f"{quantize} in {dtype}",
                ModelSpec(options.model, quantize=quantize),  # type: ignore[arg-type]
                options.device,
                dtype,
            )
            for dtype, quantize in wanted
        ]
    except ModelLoadError as error:
        print(error, file=sys.stderr)
        return 2
    print(
        f"model {reference.bundle.name} on {options.device}, {options.size} x {options.size}, "
        f"{options.steps} steps, cfg_scale 7, against {reference.name}; "
        f"{others[-1].bundle.facts['quantized']}"
    )
    print(f"{'':<18} {'':<18} {'PSNR, dB':>8} {'worst, 8-bit':>12} {'latents, max':>12}")
    times: dict[str, list[float]] = {variant.name: [] for variant in others}
    for seed, (prompt, sampler, strength) in enumerate(REQUESTS, start=1):
        request = GenerationRequest(
            input_picture(options.size),
            prompt,
            image_strength=strength,
            sampler=sampler,
            steps=options.steps,
            seed=seed,
        )
        for _ in range(options.rounds):
            # Turn by turn, so that whatever else this machine does falls on all alike.
            image, latents, seconds = reference.make(request)
            made = [variant.make(request) for variant in others]
            for variant, (_, _, own) in zip(others, made, strict=True):
                times[variant.name].append(own / seconds)
        for variant, (other, other_latents, _) in zip(others, made, strict=True):
            worst = int(np.abs(image.astype(int) - other).max())
            furthest = float((latents - other_latents).abs().max())
            print(
                f"{sampler.value:<18} {variant.name:<18} {psnr(image, other):>8.1f} "
                f"{worst:>12} {furthest:>12.4f}",
                flush=True,
            )
    print(f"{'':<37} {'time':>8} {'U-Net, MiB':>12}")
    print(f"{reference.name:<37} {1:>8.2f} {reference.unet_bytes / 2**20:>12.2f}")
    for variant in others:
        ratio = statistics.median(times[variant.name])
        print(f"{variant.name:<37} {ratio:>8.2f} {variant.unet_bytes / 2**20:>12.2f}")
    for variant in (reference, *others):
        variant.engine.drain()
    return 0


if __name__ == "__main__":
    sys.exit(main())
