"""The fast path of an engine: its model is accelerated, and run before any request.

`models.acceleration.modes` decides what a device can do; here steps are captured and compiled code
is made for the capture sizes, those that an operator configured. Whatever fails there falls back to
what works, and the log says why.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch

from models.acceleration.compiled import CompileCache
from models.acceleration.modes import accelerate, make_capturer
from models.bundle import ModelBundle
from models.errors import first_line
from pipelines.denoise.batch import Evaluation
from pipelines.engine.config import EngineConfig
from pipelines.engine.model_runner import ModelRunner
from pipelines.request import Sampler
from pipelines.samplers.programs import make_program
from pipelines.scheduler.batching import GroupKey
from pipelines.scheduler.scheduler import PolicyConfig
from pipelines.vae.decode import decode_latents, decode_together
from pipelines.vae.encode import encode_image

logger = logging.getLogger(__name__)


def make_runner(bundle: ModelBundle, config: EngineConfig, buckets: Sequence[int]) -> ModelRunner:
    """Accelerate ``bundle`` in place, and return what runs it; `warm_up` has to follow.

    ``buckets`` are the numbers of rows that its steps are padded to.
    """
    sizes = [bundle.latent_size(width, height) for width, height in config.capture_sizes]
    accelerate(bundle, config.acceleration, sizes, buckets, config.exact)
    capturer = make_capturer(config.acceleration, bundle.device)
    hot = [GroupKey(h, w, bundle.text_length, False) for h, w in sizes]
    return ModelRunner(bundle, buckets, config.max_running_requests, capturer, hot)


def warm_up(runner: ModelRunner, config: EngineConfig, policy: PolicyConfig) -> None:
    """Run the steps of every hot key and bucket, its VAE passes, and what else is compiled.

    Where compiled code fails, the parts run as they are, and the log says why.
    """
    bundle = runner.bundle
    if bundle.compiled is None:
        if runner.capturer is not None:
            _run_steps(runner, policy)
            _run_passes(runner, policy)
        return
    cache = None
    if config.compile_folder is not None:
        cache = CompileCache(config.compile_folder, bundle, config.acceleration.asked)
    known = cache is not None and cache.load()
    if not _run_compiled(runner, policy):
        # What was captured ran the compiled parts, and what was not was their fault. Outside the
        # handler: there the error's frames would hold the graphs.
        runner.pools.forget_idle()
        _run_steps(runner, policy)
    elif cache is not None and not known:
        cache.save()
    _run_passes(runner, policy)


def _run_compiled(runner: ModelRunner, policy: PolicyConfig) -> bool:
    """Run what is compiled, captured steps first. False if it failed: it is taken out then."""
    bundle = runner.bundle
    try:
        _run_steps(runner, policy)
        _run_compiled_parts(runner)
    except Exception as error:  # whatever a compiler makes of the parts
        logger.warning("compiled parts are not used, because one failed: %s", error)
        bundle.compiled = None
        bundle.facts["acceleration"] = f"not compiled: {first_line(error)}"
        return False
    return True


def _run_steps(runner: ModelRunner, policy: PolicyConfig) -> None:
    for key in runner.hot:
        pool = runner.pools.enter(key)
        try:
            for rows in policy.limits.buckets:
                if rows <= policy.limits.rows_for(key):
                    runner.denoiser.step(pool, dummy_evaluations(rows, pool.scratch), rows)
        finally:
            runner.pools.leave(key)


def _run_passes(runner: ModelRunner, policy: PolicyConfig) -> None:
    """Capture the text encoder, and encode and decodes of the capture sizes that go through the
    VAE in one part."""
    bundle, graphs = runner.bundle, runner.vae_graphs
    if graphs is None:
        return
    runner.prompts.encode_empty()
    for key in runner.hot:
        if key.latent_pixels > policy.part_pixels:
            continue
        side = bundle.downscale
        image = np.full((key.height * side, key.width * side, 3), 127, dtype=np.uint8)
        encode_image(bundle, image, tile=False, graphs=graphs)
        latents = torch.zeros(bundle.latent_channels, key.height, key.width, device=bundle.device)
        for pictures in (1, *policy.shared_decodes):
            decode_together(bundle, [latents] * pictures, graphs)


def dummy_evaluations(rows: int, place: int) -> list[Evaluation]:
    """The evaluations of a step of ``rows`` U-Net rows, all at one place."""
    program = make_program(Sampler.K_EULER, 20, 0.5)
    scales = [1.0] * (rows % 2) + [7.0] * (rows // 2)
    return [Evaluation(place, program.steps[0], scale, program.slots, None) for scale in scales]


def _run_compiled_parts(runner: ModelRunner) -> None:
    bundle = runner.bundle
    assert bundle.compiled is not None
    runner.prompts.encode_pair("a picture", "")
    for height, width in sorted(bundle.compiled.sizes):
        side = bundle.downscale
        image = np.full((height * side, width * side, 3), 127, dtype=np.uint8)
        encode_image(bundle, image, tile=False)
        latents = torch.zeros(bundle.latent_channels, height, width, device=bundle.device)
        decode_latents(bundle, latents, tile=False)
