"""The training code: vocabulary, starts, schedules, resuming, and the folder that export writes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPTokenizer

from pipelines.prompt.styles import STYLES
from scripts.paths import ROOT
from scripts.training.clip import (
    WithHeads,
    embed_text,
    make_clip,
    make_tokenizer,
)
from scripts.training.data import draw_scenes, photograph_crops, to_model
from scripts.training.export import export, unpack
from scripts.training.pairs import (
    CAPTIONS,
    KIND_TIMES,
    MOST_TIMES,
    draw_pairs,
    sample_pair,
    times,
)
from scripts.training.tokenizer import encode, learn_merges
from scripts.training.trainer import Plan, Run
from scripts.training.unet import (
    EDIT_TIMESTEP,
    GAMMA,
    SHAPES,
    alphas_cumprod,
    kept_share,
    make_unet,
    spread_timesteps,
    with_ghosts,
)
from scripts.training.vae import finished_vae, make_vae, psnr, train_vae
from scripts.training.world.captions import caption
from scripts.training.world.edits import earlier_scene
from scripts.training.world.scene import COLOURS, Scene, Thing, is_held_out, sample_scene
from tests.logged_warnings import no_logged_warnings

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def training_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training folder as it is before the first step: every checkpoint holds a start."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("training")
    tokenizer = make_tokenizer(folder / "tokenizer")
    clip = WithHeads(make_clip(tokenizer))
    unet = make_unet(clip.clip.config.text_config.hidden_size)
    states = {"vae": make_vae().state_dict(), "clip": clip.state_dict(), "unet": unet.state_dict()}
    for name, weights in states.items():
        (folder / name).mkdir()
        state = {"model": weights, "averages": {}, "step": 0}
        torch.save(state, folder / name / "checkpoint.pt")
    return folder


@pytest.fixture(scope="module")
def exported(training_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    export(training_folder, folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(training_folder: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(training_folder / "tokenizer")


def test_every_word_of_captions_and_templates_is_one_token(tokenizer: CLIPTokenizer) -> None:
    rng = np.random.default_rng(77)
    texts = [caption(sample_scene(rng, 128, 128, split="any"), rng) for _ in range(300)]
    texts += [style.negative_prompt for style in STYLES.values()]
    for text in texts:
        pieces = tokenizer.tokenize(text)
        broken = [piece for piece in pieces if not piece.endswith("</w>")]
        assert broken == [], text


@pytest.mark.parametrize("text", ["a zyx qwrt", "日本語 ñandú", "🦊!", "x" * 40])
def test_words_never_seen_are_spelt_in_bytes(tokenizer: CLIPTokenizer, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids).replace(" ", "") == text.replace(" ", "")


def test_texts_are_padded_and_cut_as_stable_diffusion_does(tokenizer: CLIPTokenizer) -> None:
    end = tokenizer.eos_token_id
    empty, long = encode(tokenizer, ["", "red " * 100])
    assert empty == [tokenizer.bos_token_id] + [end] * 76
    assert len(long) == 77
    assert long[-1] == end
    assert tokenizer("A RED Circle")["input_ids"] == tokenizer("a red circle")["input_ids"]


def test_merges_take_the_commonest_pair_first_and_end_in_whole_words() -> None:
    merges = learn_merges(Counter({"aab": 3, "ab": 1}))
    assert merges[0] == ("a", "b</w>")
    assert merges[-1] == ("a", "ab</w>")


def test_a_padded_text_embeds_as_its_own_length_does(tokenizer: CLIPTokenizer) -> None:
    torch.manual_seed(1)
    clip = make_clip(tokenizer).eval()
    texts = ["a red circle", "a blue house next to a green tree on a grass background"]
    ids = torch.tensor(encode(tokenizer, texts))
    with torch.no_grad():
        together = embed_text(clip, ids)
        alone = torch.cat([embed_text(clip, row[None]) for row in ids])
    assert torch.allclose(together, alone, atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_the_autoencoder_starts_with_the_colours_of_its_input() -> None:
    pictures = to_model(draw_scenes(4, (128, 128), 5, styled=0.0).pictures)
    vae = make_vae().eval()
    with torch.no_grad():
        output = vae.decode(vae.encode(pictures).latent_dist.mean).sample
    means = (pictures.mean(dim=(2, 3)), output.mean(dim=(2, 3)))
    together = torch.corrcoef(torch.stack([m.flatten() for m in means]))[0, 1]
    assert together > 0.7
    assert psnr(pictures, output) > psnr(pictures, torch.zeros_like(pictures)) - 3


@pytest.mark.slow("weights")
def test_the_scaling_factor_gives_latents_of_unit_variance(training_folder: Path) -> None:
    vae = finished_vae(training_folder / "vae", CPU)
    pictures = to_model(draw_scenes(32, (192, 192), 8).pictures)
    with torch.no_grad():
        posterior = vae.encode(pictures).latent_dist
    assert float((posterior.mean * vae.config.scaling_factor).std()) == pytest.approx(1, abs=0.15)
    assert float((posterior.std / posterior.mean.std()).max()) < 0.2


def test_crops_are_of_every_photograph_and_as_many(tmp_path: Path) -> None:
    for shade, size in ((10, (300, 500)), (240, (700, 400))):
        (tmp_path / str(shade)).mkdir()
        Image.new("RGB", size, (shade,) * 3).save(tmp_path / str(shade) / "a.png")
    found = photograph_crops(tmp_path, 25, 64, seed=1)
    assert found.shape == (25, 3, 64, 64)
    assert sorted(one.unique().tolist() for one in found) == [[10]] * 13 + [[240]] * 12
    with pytest.raises(FileNotFoundError, match="holds no photographs"):
        photograph_crops(tmp_path / "none", 1, 64, seed=1)


@pytest.mark.slow("weights")
def test_sharpening_leaves_the_latents_as_they_were(tmp_path: Path) -> None:
    torch.manual_seed(0)
    train_vae(tmp_path, 2, 10, CPU, crop_share=0.001)
    first = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["model"]
    options: Any = {"crop_share": 0.001, "decoder_only": True}
    train_vae(tmp_path, 6, 10, CPU, **options, photographs=ROOT / "server" / "web" / "pictures")
    second = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["model"]
    latents = [k for k in first if k.startswith(("encoder.", "quant_conv."))]
    assert latents
    assert all(torch.equal(first[k], second[k]) for k in latents)
    decoder = [k for k in first if k.startswith("decoder.")]
    assert any(not torch.equal(first[k], second[k]) for k in decoder)


def test_noise_is_added_on_stable_diffusions_schedule() -> None:
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
    )
    assert torch.allclose(alphas_cumprod().float(), scheduler.alphas_cumprod, atol=1e-5)
    assert GAMMA == 5.0


def test_an_earlier_scene_differs_in_what_a_prompt_can_name() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        scene = sample_scene(rng, 128, 128)
        before = earlier_scene(scene, rng)
        assert before != scene
        assert (before.width, before.height, before.seed) == (128, 128, scene.seed)
        for thing, other in zip(scene.things, before.things, strict=True):
            assert (thing.x, thing.y, thing.size) == (other.x, other.y, other.size)
            assert not is_held_out(other.kind, other.colour, before.background)


def test_a_ghost_is_what_an_image_to_image_start_holds_of_the_old_picture() -> None:
    count = 400
    generator = torch.Generator().manual_seed(0)
    new = torch.randn(count, 4, 2, 2, generator=generator)
    old = torch.randn(count, 4, 2, 2, generator=generator)
    t = torch.arange(count) * 2
    no_noise, none = torch.zeros_like(new), torch.zeros(count, dtype=torch.bool)
    abar = alphas_cumprod().float()
    ghosts = with_ghosts(no_noise, new, old, t, none, abar, generator)
    # How much of (old - new) each one holds; -1 where it is another picture's.
    way = (old - new).flatten(1)
    held = (ghosts.flatten(1) * way).sum(dim=1) / way.pow(2).sum(dim=1)
    exact = (ghosts.flatten(1) - held[:, None] * way).abs().amax(dim=1) < 1e-5
    edited = exact & (held > 0)
    assert 0.45 < float(edited.float().mean()) < 0.65
    assert 0.25 < float((exact & (held == 0)).float().mean()) < 0.45
    a = abar[t.clamp(min=EDIT_TIMESTEP)]
    # Never more than at a start at t itself: sqrt(a) new + sqrt(1 - a) ghost is sqrt(a) old there.
    share = held[edited] / (a / (1 - a)).sqrt()[edited]
    assert 0.97 < float(share.max()) <= 1 + 1e-5
    # Without a prompt there is always one.
    ghosts = with_ghosts(no_noise, new, old, t, ~none, abar, generator)
    assert bool((ghosts.flatten(1).abs().amax(dim=1) > 0).all())


def test_half_of_the_timesteps_lie_where_an_edit_decides_shapes() -> None:
    parts = (torch.arange(1000) + 0.5) / 1000
    t = spread_timesteps(parts)
    assert (int(t.min()), int(t.max())) == (1, 999)
    first, last = SHAPES
    share = float(((t >= first) & (t < last)).float().mean())
    assert share == pytest.approx(0.5 + 0.5 * (last - first) / 1000, abs=0.01)


def test_what_fails_more_often_is_drawn_more_often() -> None:
    square = Thing("square", "red", 0.5, 0.5, 0.5)
    plain = Scene((square,), "grass", None, 64, 64, 1)
    assert times((plain, replace(plain, background="ocean"))) == 1
    assert times((plain, replace(plain, style="anime"))) == 1.5  # the mean of 1 and 2
    assert times((plain, replace(plain, things=(replace(square, kind="heart"),)))) == KIND_TIMES
    fish = replace(square, kind="fish", colour="white")
    white = replace(plain, things=(fish,), background="sky")
    hard = replace(white, style="pixel-art", things=(white.things[0], white.things[0]))
    assert times((hard, replace(hard, background="snow"))) == MOST_TIMES
    rng = np.random.default_rng(6)
    pairs = [sample_pair((64, 64), rng) for _ in range(1500)]
    styles = Counter(scene.style for pair in pairs for scene in pair)
    assert styles["anime"] > 1.2 * styles["origami"]
    assert not any(
        is_held_out(thing.kind, thing.colour, scene.background)
        for pair in pairs
        for scene in pair
        for thing in scene.things
    )


def test_pairs_are_drawn_with_their_words_and_the_same_for_a_seed(
    tokenizer: CLIPTokenizer,
) -> None:
    first, again, other = (
        draw_pairs((96, 64), 3, tokenizer, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert first.pictures.shape == (3, 2, 64, 96, 3)
    assert first.ids.shape == (3, 2, CAPTIONS, 77)
    assert first.styled.shape == (3, 2)
    assert np.array_equal(first.pictures, again.pictures)
    assert np.array_equal(first.ids, again.ids)
    assert not np.array_equal(first.pictures, other.pictures)
    words = tokenizer.decode(first.ids[0, 0, 0], skip_special_tokens=True)
    assert any(colour in words for colour in COLOURS)


def test_softening_leaves_a_prompt_little_at_the_lowest_noise() -> None:
    t = torch.tensor([0, 300, 500, 700, 999])
    kept = kept_share(t, torch.zeros(5, dtype=torch.bool))
    assert kept.tolist() == pytest.approx([0.15, 0.15, 0.35, 0.55, 0.55])
    # At the contract's default cfg_scale it then comes to the answer that was there before.
    assert 7 * float(kept[0]) == pytest.approx(1, abs=0.06)
    styled = kept_share(t, torch.ones(5, dtype=torch.bool))
    assert styled.tolist() == pytest.approx([0.3, 0.3 + 0.2 / 3, 0.5, 0.5, 0.5])


@pytest.mark.slow("weights")
def test_export_writes_what_diffusers_loads_unchanged(
    training_folder: Path, exported: Path
) -> None:
    with no_logged_warnings():
        pipe = StableDiffusionImg2ImgPipeline.from_pretrained(exported)
        clip = CLIPModel.from_pretrained(exported / "clip")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.safety_checker is None
    assert clip.config.projection_dim > 0
    assert pipe.text_encoder.config.hidden_size == pipe.unet.config.cross_attention_dim
    source = Image.new("RGB", (64, 64), (200, 40, 40))
    made = pipe("a red circle", image=source, strength=0.5, num_inference_steps=2).images[0]
    assert made.size == (64, 64)
    kept = torch.load(training_folder / "clip" / "checkpoint.pt", weights_only=True)["model"]
    name = "text_model.encoder.layers.0.mlp.fc1.weight"
    tower = pipe.text_encoder.state_dict()
    exported = tower.get(name, tower.get(name.removeprefix("text_model.")))
    assert exported is not None
    assert torch.allclose(exported, kept[f"clip.{name}"], atol=1e-3)


@pytest.mark.slow("weights")
def test_training_can_go_on_from_an_exported_folder(exported: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    unpack(exported, again)
    exported_twice = tmp_path / "twice"
    export(again, exported_twice)
    files = sorted(f.relative_to(exported) for f in exported.rglob("*.safetensors"))
    assert len(files) == 4
    for file in files:
        first, second = load_file(exported / file), load_file(exported_twice / file)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first), file
    vae = make_vae()
    run = Run(again / "vae", vae, Plan(10, 1e-3, ema=0.9))
    assert run.step == 0
    assert set(run.averages) == {k for k, v in vae.state_dict().items() if v.is_floating_point()}
