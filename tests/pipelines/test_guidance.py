"""CLIP guidance: against autograd written out here, beside neighbours, on every sampler."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.bundle import ModelBundle
from models.noise_schedule import NoiseSchedule
from pipelines.denoise.batch import Evaluation
from pipelines.denoise.clip_guidance import (
    FLAT_WINDOW,
    PRESETS,
    ClipGuide,
    Correction,
    GuidanceRun,
    spherical_distance,
)
from pipelines.denoise.denoiser import Denoiser
from pipelines.denoise.latent_pool import LatentPool
from pipelines.engine.engine import Engine, EngineConfig
from pipelines.errors import GenerationFailed
from pipelines.request import (
    CONTRACT_SAMPLERS,
    ClipGuidancePreset,
    GenerationRequest,
    Pixels,
    Sampler,
)
from pipelines.samplers.programs import make_program
from pipelines.scheduler.batching import GroupKey
from pipelines.vae.noise import RequestNoise
from pipelines.vae.preview import LatentToRgb

pytestmark = pytest.mark.process

Guidance = ClipGuidancePreset
GUIDED = list(PRESETS)
PROMPT = "a red cat"
ROW = make_program(Sampler.K_EULER, 10, 0.3).steps[2]


@pytest.fixture
def inference() -> Iterator[None]:
    """As on the engine's thread."""
    with torch.inference_mode():
        yield


def run_of(preset: ClipGuidancePreset, **changes: object) -> GuidanceRun:
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    fields = {"image": image, "prompt": PROMPT, "seed": 5, "clip_guidance": preset, **changes}
    run = GuidanceRun.of(GenerationRequest(**fields))  # type: ignore[arg-type]
    assert run is not None
    return run


def made(loss: float | None) -> Correction:
    return Correction(torch.zeros(4, 8, 8), torch.ones(4, 8, 8), loss)


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def direct_gradient(
    bundle: ModelBundle,
    run: GuidanceRun,
    latents: torch.Tensor,
    output: torch.Tensor,
    text: torch.Tensor,
    sigma: float,
    timestep: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss and its gradient, written out: epsilon prediction, guidance scale 7."""
    assert bundle.clip is not None
    clip = bundle.clip
    tokens = torch.tensor([[512, *bundle.tokenizer(PROMPT).input_ids[1:-1], 513]])
    wanted_text = clip.model.get_text_features(tokens).pooler_output[0]
    wanted_text = wanted_text / wanted_text.norm()
    variable = (latents - sigma * output).clone().requires_grad_()
    x0 = variable
    if run.preset.through_unet:
        # The value is the guided prediction's, the slope that of the prompt's own.
        variable = latents.clone().requires_grad_()
        scaled = variable[None] / math.sqrt(sigma**2 + 1)
        out = bundle.unet(scaled, timestep, encoder_hidden_states=text[1:]).sample[0]
        own = variable - sigma * out
        x0 = own + (x0 - own).detach()
    if run.preset.decoded:
        picture = bundle.vae.decode(x0[None] / bundle.scaling_factor).sample[0] / 2 + 0.5
    else:
        rgb = LatentToRgb.fit(bundle)
        picture = (x0.permute(1, 2, 0) @ rgb.weight.T + rgb.bias).permute(2, 0, 1)
    cuts = [picture]
    for top, left, side in run.boxes(*picture.shape[1:]):
        cuts.append(picture[:, top : top + side, left : left + side])
    assert len(cuts) == run.preset.cutouts
    losses = []
    for cut in cuts:
        seen = F.interpolate(cut[None], (32, 32), mode="bilinear", antialias=True)
        seen = (seen - clip.mean[:, None, None]) / clip.std[:, None, None]
        image = clip.model.get_image_features(seen).pooler_output[0]
        chord = (image / image.norm() - wanted_text).norm()
        losses.append(2 * torch.arcsin(chord / 2) ** 2)
    loss = torch.stack(losses).mean()
    loss.backward()
    assert variable.grad is not None
    return losses[0].detach(), variable.grad


@pytest.mark.parametrize("preset", GUIDED)
def test_agrees_with_autograd_written_out(guided: ModelBundle, preset: Guidance) -> None:
    assert guided.clip is not None
    row = ROW
    latents, output = random(4, 8, 8) * 3, random(4, 8, 8, seed=2)
    text = random(2, 77, guided.text_width, seed=3)
    run = run_of(preset)
    loss, gradient = direct_gradient(guided, run, latents, output, text, row.sigma, row.timestep)
    with torch.inference_mode():
        got = ClipGuide(guided, guided.clip).correction(run, row, latents, output, text, False)
    assert got is not None
    assert got.loss == pytest.approx(loss.item(), rel=1e-5)
    undecided = row.sigma / math.sqrt(row.sigma**2 + 1)
    push = -run.preset.strength * undecided * gradient / gradient.square().mean().sqrt()
    # The sampler sees x0 = latents - sigma * output.
    moved = -row.sigma * got.output
    assert (moved - push).abs().max() / push.abs().max() < 2e-4
    assert moved.square().mean().sqrt().item() == pytest.approx(
        run.preset.strength * undecided, rel=1e-4
    )


def test_v_prediction_moves_the_picture_as_epsilon_does(guided: ModelBundle) -> None:
    assert guided.clip is not None
    guide, run = ClipGuide(guided, guided.clip), run_of(Guidance.SIMPLE)
    latents, noise = random(4, 8, 8) * 3, random(4, 8, 8, seed=2)
    text = random(2, 77, guided.text_width, seed=3)
    moved = []
    for kind in ("epsilon", "v_prediction"):
        schedule = NoiseSchedule(prediction_type=kind)
        row = make_program(Sampler.K_EULER, 10, 0.3, schedule).steps[2]
        x0 = latents - row.sigma * noise
        output = (x0 - row.x0[0] * latents) / row.x0[1]
        got = guide.correction(run, row, latents, output, text, False)
        assert got is not None
        moved.append(row.x0[1] * got.output)
    assert torch.allclose(moved[0], moved[1], atol=1e-5)


def test_the_distance_is_that_on_the_sphere() -> None:
    text = torch.tensor([1.0, 0.0])
    angles = torch.tensor([0.0, 0.5, 1.5, 3.0])
    pictures = torch.stack([angles.cos(), angles.sin()], dim=1)
    # Twice the square of half the angle.
    assert torch.allclose(spherical_distance(pictures, text), angles**2 / 2, atol=1e-3)


def steps(
    bundle: ModelBundle,
    sampler: Sampler,
    runs: list[GuidanceRun | None],
    poisoned: int | None = None,
) -> list[torch.Tensor]:
    """Latents of as many requests as ``runs``, stepped together to the end in one bucket."""
    pool = LatentPool(bundle, GroupKey(8, 8, 77, False), capacity=len(runs))
    program = make_program(sampler, 10, 0.3)
    text = random(2, 77, bundle.text_width, seed=3)
    noise = [RequestNoise.draw(i + 1, (4, 8, 8), program.draws) for i in range(len(runs))]
    places = [pool.admit(draw.start * program.steps[0].sigma, text) for draw in noise]
    if poisoned is not None:
        pool.state[places[poisoned]] = float("nan")
    denoiser = Denoiser(bundle)
    for row in program.steps:
        step = denoiser.step(
            pool,
            [
                Evaluation(
                    place,
                    row,
                    7.0,
                    program.slots,
                    None if row.noise is None else draw.steps[row.noise],
                    guidance=run,
                )
                for place, draw, run in zip(places, noise, runs, strict=True)
            ],
            8,
        )
        # Guided and plain requests are rows of one forward.
        assert step.rows == 8
    return [pool.latents(place) for place in places]


@pytest.mark.parametrize("sampler", list(CONTRACT_SAMPLERS))
def test_every_sampler_ends_nearer_to_the_prompt(
    guided: ModelBundle, sampler: Sampler, inference: None
) -> None:
    assert guided.clip is not None
    run = run_of(Guidance.SIMPLE, sampler=sampler)
    # As strong as it takes for random weights to show it.
    run.preset = replace(run.preset, strength=0.5)
    steered, plain = steps(guided, sampler, [run])[0], steps(guided, sampler, [None])[0]
    assert torch.isfinite(steered).all()
    judge, guide = run_of(Guidance.SIMPLE), ClipGuide(guided, guided.clip)
    with torch.inference_mode(False):
        before, after = (guide.losses(judge, x.clone(), False)[0] for x in (plain, steered))
    assert after < before


@pytest.mark.parametrize("preset", GUIDED)
def test_a_guided_request_leaves_its_neighbours_unchanged_to_the_bit(
    guided: ModelBundle, preset: Guidance, inference: None
) -> None:
    alone = steps(guided, Sampler.K_DPMPP_2M, [None, None, None])
    beside = steps(guided, Sampler.K_DPMPP_2M, [None, run_of(preset), None])
    assert torch.equal(beside[0], alone[0])
    assert torch.equal(beside[2], alone[2])
    assert not torch.equal(beside[1], alone[1])
    # Nor does what it is guided by depend on who else is guided.
    crowd = [run_of(Guidance.SIMPLE), run_of(preset), run_of(Guidance.SLOW)]
    assert torch.equal(steps(guided, Sampler.K_DPMPP_2M, crowd)[1], beside[1])


def test_a_guided_request_that_is_not_finite_goes_on_alone(
    guided: ModelBundle, inference: None
) -> None:
    alone = steps(guided, Sampler.K_EULER, [run_of(Guidance.SLOW), None])
    runs = [run_of(Guidance.SLOW), None, run_of(Guidance.SLOW)]
    poisoned = steps(guided, Sampler.K_EULER, runs, poisoned=2)
    assert torch.equal(poisoned[0], alone[0])
    assert torch.isnan(poisoned[2]).all()
    assert runs[2] is not None
    assert runs[2].losses == []


def test_a_step_that_raised_leaves_the_run_as_it_was(
    guided: ModelBundle, inference: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = LatentPool(guided, GroupKey(8, 8, 77, False), capacity=1)
    program, run = make_program(Sampler.K_EULER, 10, 0.3), run_of(Guidance.SIMPLE)
    place = pool.admit(random(4, 8, 8) * 3, random(2, 77, guided.text_width, seed=3))
    evaluation = Evaluation(place, program.steps[0], 7.0, program.slots, None, guidance=run)
    denoiser = Denoiser(guided)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of luck"):
        patch.setattr(
            denoiser, "mix", lambda *_: (_ for _ in ()).throw(RuntimeError("out of luck"))
        )
        denoiser.step(pool, [evaluation])
    assert (run.evaluation, run.losses, run.direction) == (0, [], None)
    denoiser.step(pool, [evaluation])
    assert run.evaluation == 1
    assert len(run.losses) == 1


def test_without_a_clip_model_the_request_fails(tiny: ModelBundle, inference: None) -> None:
    with pytest.raises(GenerationFailed, match="no CLIP model"):
        steps(tiny, Sampler.K_EULER, [run_of(Guidance.SIMPLE)])


def test_cutouts_depend_on_seed_and_evaluation_and_stay_inside() -> None:
    run = run_of(Guidance.SLOWER)
    boxes = run.boxes(40, 60)
    assert len(boxes) == run.preset.cutouts - 1
    assert boxes == run_of(Guidance.SLOWER).boxes(40, 60)
    assert boxes != run_of(Guidance.SLOWER, seed=6).boxes(40, 60)
    run.commit(None)
    assert run.boxes(40, 60) != boxes
    for top, left, side in boxes:
        assert 16 <= side <= 40
        assert 0 <= top <= 40 - side
        assert 0 <= left <= 60 - side


@pytest.mark.parametrize(
    ("sampler", "want"),
    [(Sampler.K_EULER, [1, 0, 1, 0, 1, 0]), (Sampler.K_HEUN, [1, 1, 0, 0, 1, 1])],
)
def test_fast_presets_compute_every_second_gradient(sampler: Sampler, want: list[int]) -> None:
    run, due = run_of(Guidance.FAST_BLUE, sampler=sampler), []
    for _ in want:
        due.append(int(run.due))
        run.commit(made(0.9 - 0.1 * run.evaluation) if run.due else run.repeated(ROW))
    assert due == want


def test_a_step_without_a_gradient_is_pushed_along_the_last_one() -> None:
    run, direction = run_of(Guidance.FAST_GREEN), random(4, 8, 8)
    assert run.repeated(ROW) is None
    run.commit(run.pushed(ROW, direction, 0.9))
    again = run.repeated(ROW)
    assert again is not None
    undecided = ROW.sigma / math.sqrt(ROW.sigma**2 + 1)
    moved = ROW.x0[1] * again.output
    assert torch.allclose(moved, -run.preset.strength * undecided * direction, atol=1e-6)
    run.commit(again)
    assert run.losses == [0.9]
    for _ in range(FLAT_WINDOW - 1):
        run.commit(made(0.9))
    assert run.ended
    assert run.repeated(ROW) is None


def test_the_denoiser_pushes_at_every_step_of_a_fast_preset(
    guided: ModelBundle, inference: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    compute = ClipGuide.correction

    def counted(guide: ClipGuide, run: GuidanceRun, *rest: object) -> Correction | None:
        computed.append(run.evaluation)
        return compute(guide, run, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(ClipGuide, "correction", counted)
    run = run_of(Guidance.FAST_BLUE, sampler=Sampler.K_DPMPP_2M)
    pushed = steps(guided, Sampler.K_DPMPP_2M, [run])[0]
    assert computed == list(range(0, run.evaluation, 2))
    monkeypatch.setattr(GuidanceRun, "repeated", lambda *_: None)
    once = run_of(Guidance.FAST_BLUE, sampler=Sampler.K_DPMPP_2M)
    assert not torch.equal(steps(guided, Sampler.K_DPMPP_2M, [once])[0], pushed)


def test_guidance_ends_when_the_loss_flattens() -> None:
    run = run_of(Guidance.SIMPLE)
    for loss in (0.9, 0.8, 0.7, 0.75, 0.8, 0.9, 0.85, 0.8):
        assert run.due
        run.commit(made(loss))
    for _ in range(FLAT_WINDOW - 1):
        assert run.due
        run.commit(made(run.losses[-1] * 0.9999))
    assert run.ended
    assert not run.due


def test_every_preset_but_none_guides() -> None:
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    assert GuidanceRun.of(GenerationRequest(image, PROMPT)) is None
    for preset in set(Guidance) - {Guidance.NONE}:
        assert run_of(preset).preset is PRESETS[preset]
    assert run_of(Guidance.SLOW, prompt=r"a (red:1.4) \(cat\)").text == "a red (cat)"


def test_the_engine_guides_and_plain_bytes_stay(guided: ModelBundle, picture: Pixels) -> None:
    plain = GenerationRequest(picture, PROMPT, image_strength=0.8, steps=10, seed=3)
    steered = replace(plain, clip_guidance=Guidance.SLOW, seed=4)
    engine = Engine(guided, EngineConfig(exact=True, warm_up=False))
    engine.start()
    try:
        alone = engine.submit(plain).wait().image
        handles = [engine.submit(request) for request in (steered, plain, steered)]
        first, beside, second = (handle.wait().image for handle in handles)
        unguided = engine.submit(replace(steered, clip_guidance=Guidance.NONE)).wait().image
    finally:
        engine.drain()
    assert np.array_equal(alone, beside)
    assert np.array_equal(first, second)
    assert not np.array_equal(first, unguided)
