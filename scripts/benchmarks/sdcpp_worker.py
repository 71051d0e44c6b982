"""Makes images by stable-diffusion.cpp; runs in an environment of its own, without torch.

One line on the standard input asks for one image; the answer is the line ``seconds N``.
"""

from __future__ import annotations

import sys
import time
from importlib import import_module
from typing import Any


def main(checkpoint: str, size: int, steps: int, threads: int) -> None:
    """Load a checkpoint in the original layout, then answer line by line."""
    image_module: Any = import_module("PIL.Image")
    package: Any = import_module("stable_diffusion_cpp")
    model = package.StableDiffusion(
        model_path=checkpoint, n_threads=threads, wtype="f16", verbose=False
    )
    picture = image_module.new("RGB", (size, size), (170, 205, 240))
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        images = model.generate_image(
            prompt="a blue circle",
            negative_prompt="blurry",
            init_image=picture,
            width=size,
            height=size,
            cfg_scale=7.0,
            sample_method="euler",
            sample_steps=steps,
            strength=1.0,
            seed=1,
        )
        if len(images) != 1:
            raise RuntimeError(f"stable-diffusion.cpp made {len(images)} images")
        print(f"seconds {time.perf_counter() - began}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
