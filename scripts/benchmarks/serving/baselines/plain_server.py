"""The usual server: one StableDiffusionImg2ImgPipeline behind a lock, written with care.

.venv/bin/python -m scripts.benchmarks.serving.baselines.plain_server --port 8001
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
from typing import Annotated, Any

import torch
import uvicorn
from diffusers import StableDiffusionImg2ImgPipeline
from fastapi import FastAPI, File, Form
from PIL import Image

from models.bundle import ModelBundle
from models.loading.loader import load_bundle
from pipelines.request import Sampler
from pipelines.samplers.schedules import make_scheduler

PATH = "/api/generate/basic/imageToImage"


def make_pipeline(bundle: ModelBundle) -> Any:
    """diffusers' pipeline on the very modules that the engine runs."""
    parts = (bundle.vae, bundle.text_encoder, bundle.tokenizer, bundle.unet)
    scheduler = make_scheduler(Sampler.K_DPMPP_2M)
    pipeline = StableDiffusionImg2ImgPipeline(
        *parts, scheduler, None, None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def read_picture(data: bytes, width: int, height: int) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB").resize((width, height))


def picture_answer(picture: Image.Image, seed: int) -> dict[str, Any]:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    image = base64.b64encode(buffer.getvalue()).decode()
    return {"code": 0, "message": "success", "data": {"image": image, "seed": seed}}


def create_app(bundle: ModelBundle) -> FastAPI:
    app, lock, pipeline = FastAPI(), asyncio.Lock(), make_pipeline(bundle)

    def generate(sampler: Sampler, seed: int, **options: Any) -> Image.Image:
        pipeline.scheduler = make_scheduler(sampler)
        generator = torch.Generator().manual_seed(seed)
        picture: Image.Image = pipeline(generator=generator, **options).images[0]
        return picture

    @app.post(PATH)
    async def image_to_image(
        init_image: Annotated[bytes, File()],
        prompt: Annotated[str, Form()],
        width: Annotated[int, Form()],
        height: Annotated[int, Form()],
        image_strength: Annotated[float, Form()] = 0.35,
        cfg_scale: Annotated[float, Form()] = 7.0,
        sampler: Annotated[Sampler, Form()] = Sampler.K_DPMPP_2M,
        steps: Annotated[int, Form()] = 30,
        seed: Annotated[int, Form()] = 1,
    ) -> dict[str, Any]:
        picture = await asyncio.to_thread(read_picture, init_image, width, height)
        async with lock:
            made = await asyncio.to_thread(
                generate,
                sampler,
                seed,
                prompt=prompt,
                image=picture,
                strength=1 - image_strength,
                guidance_scale=cfg_scale,
                num_inference_steps=steps,
            )
        return await asyncio.to_thread(picture_answer, made, seed)

    add_health(app)
    return app


def add_health(app: FastAPI) -> None:
    """The two routes that the benchmark asks any server."""

    @app.get("/health/live")
    @app.get("/health/ready")
    async def health() -> dict[str, str]:
        return {"status": "ready"}


def parse_options(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--port", type=int, default=8001)
    return parser


def load(options: argparse.Namespace) -> ModelBundle:
    if options.threads:
        torch.set_num_threads(options.threads)
    return load_bundle(options.model, device=options.device, dtype=options.dtype)


def serve(app: FastAPI, port: int) -> None:
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    chosen = parse_options(__doc__).parse_args()
    serve(create_app(load(chosen)), chosen.port)
