"""Request-level dynamic batching: equal requests that wait together run as one pipeline call.

Equal must be size, steps, strength, sampler and guidance scale, because a diffusers pipeline has
one of each a call; prompts, pictures and seeds may differ. A batch starts as soon as the pipeline
is free and runs to its end; what came meanwhile waits.

.venv/bin/python -m scripts.benchmarks.serving.baselines.batching_server --port 8002
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from fastapi import FastAPI, File, Form
from PIL import Image

from models.bundle import ModelBundle
from pipelines.request import Sampler
from pipelines.samplers.schedules import make_scheduler
from scripts.benchmarks.serving.baselines.plain_server import (
    PATH,
    add_health,
    load,
    make_pipeline,
    parse_options,
    picture_answer,
    read_picture,
    serve,
)


@dataclass(frozen=True)
class Recipe:
    """What must be equal for two requests to share a pipeline call."""

    size: tuple[int, int]
    steps: int
    strength: float
    sampler: Sampler
    guidance_scale: float


@dataclass(eq=False)
class Waiting:
    """A request in the queue."""

    recipe: Recipe
    picture: Image.Image
    prompt: str
    seed: int
    made: asyncio.Future[Image.Image] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


def take_batch(queue: deque[Waiting], most: int) -> list[Waiting]:
    """The oldest request and those equal to it, ``most`` at most, out of the queue."""
    batch = [w for w in queue if w.recipe == queue[0].recipe][:most]
    for waiting in batch:
        queue.remove(waiting)
    return batch


class Batcher:
    """Feeds a pipeline with batches of equal requests."""

    def __init__(self, bundle: ModelBundle, most: int) -> None:
        self._pipeline = make_pipeline(bundle)
        self._most = most
        self._queue: deque[Waiting] = deque()
        self._arrived = asyncio.Event()
        self.batches: list[int] = []

    async def make(self, waiting: Waiting) -> Image.Image:
        self._queue.append(waiting)
        self._arrived.set()
        return await waiting.made

    async def run(self) -> None:
        while True:
            await self._arrived.wait()
            while self._queue:
                batch = take_batch(self._queue, self._most)
                self.batches.append(len(batch))
                try:
                    pictures = await asyncio.to_thread(self._generate, batch)
                except Exception as error:
                    for waiting in batch:
                        waiting.made.set_exception(error)
                    continue
                for waiting, picture in zip(batch, pictures, strict=True):
                    waiting.made.set_result(picture)
            self._arrived.clear()

    def _generate(self, batch: list[Waiting]) -> list[Image.Image]:
        recipe = batch[0].recipe
        self._pipeline.scheduler = make_scheduler(recipe.sampler)
        pictures: list[Image.Image] = self._pipeline(
            prompt=[w.prompt for w in batch],
            image=[w.picture for w in batch],
            generator=[torch.Generator().manual_seed(w.seed) for w in batch],
            strength=recipe.strength,
            guidance_scale=recipe.guidance_scale,
            num_inference_steps=recipe.steps,
        ).images
        return pictures


def create_app(bundle: ModelBundle, most: int = 8) -> FastAPI:
    batcher = Batcher(bundle, most)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(batcher.run())
        yield
        task.cancel()

    app = FastAPI(lifespan=lifespan)
    app.state.batcher = batcher

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
        recipe = Recipe((width, height), steps, 1 - image_strength, sampler, cfg_scale)
        made = await batcher.make(Waiting(recipe, picture, prompt, seed))
        return await asyncio.to_thread(picture_answer, made, seed)

    add_health(app)
    return app


if __name__ == "__main__":
    parser = parse_options(__doc__)
    parser.add_argument("--max-batch", type=int, default=8)
    chosen = parser.parse_args()
    serve(create_app(load(chosen), chosen.max_batch), chosen.port)
