"""Print how far the engine is from diffusers' img2img pipeline, for every sampler.

Same weights, picture, prompt and seed, in float32 on the CPU: the largest difference of two 8-bit
pictures anywhere, and of the final latents relative to their largest. Needs no network.

    .venv/bin/python scripts/compare_with_diffusers [--model embedded] [--size 320] [--steps 20]
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from PIL import Image, ImageDraw

from models.loading.loader import load_bundle
from models.noise_schedule import NoiseSchedule
from pipelines.engine import model_runner
from pipelines.engine.engine import Engine, EngineConfig
from pipelines.request import CONTRACT_SAMPLERS, GenerationRequest, Sampler
from pipelines.samplers.schedules import make_scheduler
from pipelines.vae.decode import Decoding

IMAGE_STRENGTHS = (0.1, 0.35, 0.65)


def input_picture(size: int) -> Image.Image:
    """A red circle on a light sky: something every model has an idea of."""
    image = Image.new("RGB", (size, size), (170, 205, 240))
    box = [size * 0.25, size * 0.25, size * 0.75, size * 0.75]
    ImageDraw.Draw(image).ellipse(box, fill=(215, 40, 40), outline=(90, 20, 30), width=4)
    return image


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg-scale", type=float, default=7.0)
    parser.add_argument("--samplers", nargs="+", type=Sampler, default=list(CONTRACT_SAMPLERS))
    options = parser.parse_args()

    bundle = load_bundle(options.model, device="cpu", dtype="float32")
    engine = Engine(bundle, EngineConfig(warm_up=False))
    ours_latents: list[torch.Tensor] = []
    decoding = Decoding

    def keeping(bundle: Any, latents: torch.Tensor, *rest: Any) -> Any:
        ours_latents.append(latents)
        return decoding(bundle, latents, *rest)

    model_runner.Decoding = keeping  # type: ignore[assignment, attr-defined]
    engine.start()
    image = input_picture(options.size)
    print(
        f"model {bundle.name}, {options.size} x {options.size}, {options.steps} steps, "
        f"cfg_scale {options.cfg_scale}, image_strength {IMAGE_STRENGTHS}"
    )
    print(f"{'sampler':<22} {'8-bit, worst':>12} {'latents, relative':>18}")
    for sampler in options.samplers:
        if sampler is Sampler.K_DPMPP_2S_ANCESTRAL:
            print(f"{sampler.value:<22} {'diffusers has none':>31}")
            continue
        worst_pixel, worst_latent = 0, 0.0
        for seed, image_strength in enumerate(IMAGE_STRENGTHS, start=1):
            request = GenerationRequest(
                np.asarray(image),
                "a blue circle",
                "blurry",
                image_strength=image_strength,
                cfg_scale=options.cfg_scale,
                sampler=sampler,
                steps=options.steps,
                seed=seed,
            )
            ours = engine.submit(request).wait().image.astype(int)
            pipe = StableDiffusionImg2ImgPipeline(
                bundle.vae,
                bundle.text_encoder,
                bundle.tokenizer,
                bundle.unet,
                make_scheduler(sampler, NoiseSchedule.from_config(bundle.scheduler_config)),
                None,
                None,
            )
            pipe.set_progress_bar_config(disable=True)
            latents = pipe(
                prompt=request.prompt,
                negative_prompt=request.negative_prompt,
                image=image,
                strength=1 - image_strength,
                num_inference_steps=options.steps,
                guidance_scale=options.cfg_scale,
                generator=torch.Generator().manual_seed(seed),
                output_type="latent",
            ).images
            with torch.inference_mode():
                decoded = bundle.vae.decode(latents / bundle.scaling_factor).sample
            theirs = np.asarray(pipe.image_processor.postprocess(decoded)[0]).astype(int)
            worst_pixel = max(worst_pixel, int(np.abs(ours - theirs).max()))
            error = (ours_latents[-1] - latents[0]).abs().max() / latents.abs().max()
            worst_latent = max(worst_latent, float(error))
        note = (
            "  (wrong in diffusers after a mid-schedule start)" if sampler is Sampler.K_LMS else ""
        )
        print(f"{sampler.value:<22} {worst_pixel:>12} {worst_latent:>18.1e}{note}", flush=True)
    engine.drain()


if __name__ == "__main__":
    main()
