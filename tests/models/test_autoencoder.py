"""Another VAE: folder or file, large or tiny; and that encoding, decoding and previews follow."""

from __future__ import annotations

import asyncio
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors.torch import load_file, save_file

from models.bundle import ModelBundle
from models.loading.loader import ModelLoadError, ModelSpec, load_model
from pipelines.engine.engine import Engine, EngineConfig
from pipelines.request import GenerationRequest, Pixels
from pipelines.vae.decode import decode_latents
from pipelines.vae.encode import ImageEncoder, encode_image
from pipelines.vae.preview import LatentToRgb, TinyPreview


def drawn_previews(bundle: ModelBundle, side: int) -> list[Pixels]:
    """The previews of a picture of that size, each once, as an engine gives them out."""
    engine = Engine(bundle, EngineConfig(warm_up=False))
    engine.start()
    try:
        image = np.zeros((side, side, 3), np.uint8)
        request = GenerationRequest(image=image, prompt="a", seed=1, steps=10, previews=True)
        handle = engine.submit(request)

        async def seen() -> list[Pixels]:
            return [p.preview async for p in handle.progress() if p.preview is not None]

        found = asyncio.run(seen())
        handle.wait(60)
    finally:
        engine.drain(10.0)
    return list({id(one): one for one in found}.values())


def load(model: Path, vae: Path, configuration: Path | None = None) -> ModelBundle:
    options = {"configuration": configuration} if configuration else {}
    spec = ModelSpec(str(model), vae=str(vae))
    return load_model(spec, device="cpu", dtype="float32", **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tiny_vae() -> AutoencoderTiny:
    torch.manual_seed(5)
    channels = (8, 8, 8, 8)
    return AutoencoderTiny(
        encoder_block_out_channels=channels, decoder_block_out_channels=channels
    ).eval()


@pytest.fixture(scope="module")
def tiny_vae_folder(tiny_vae: AutoencoderTiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("taesd")
    tiny_vae.save_pretrained(folder, safe_serialization=True)
    return folder


def same_weights(bundle: ModelBundle, want: torch.nn.Module) -> bool:
    ours, theirs = bundle.vae.state_dict(), want.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in theirs)


@pytest.fixture(scope="module")
def other_vae(tiny: ModelBundle) -> AutoencoderKL:
    torch.manual_seed(9)
    return AutoencoderKL.from_config(dict(tiny.vae.config)).eval()


def test_a_folder(tiny_folder: Path, other_vae: AutoencoderKL, tmp_path: Path) -> None:
    other_vae.save_pretrained(tmp_path / "vae", safe_serialization=True)
    for folder in (tmp_path / "vae", tmp_path):
        bundle = load(tiny_folder, folder)
        assert same_weights(bundle, other_vae)
    (file,) = (tmp_path / "vae").glob("*.safetensors")
    assert same_weights(load(tiny_folder, file), other_vae)
    assert bundle.facts["vae"] == f"AutoencoderKL, {tmp_path}"


def test_names_of_attention_before_diffusers_0_18(
    tiny_folder: Path, other_vae: AutoencoderKL, tmp_path: Path
) -> None:
    other_vae.save_pretrained(tmp_path, safe_serialization=True)
    (file,) = tmp_path.glob("*.safetensors")
    old = {}
    for name, tensor in load_file(file).items():
        if ".attentions." in name:
            for new, before in [("to_q", "query"), ("to_k", "key"), ("to_v", "value")]:
                name = name.replace(f".{new}.", f".{before}.")
            name = name.replace(".to_out.0.", ".proj_attn.")
        old[name] = tensor
    assert "encoder.mid_block.attentions.0.query.weight" in old
    save_file(old, file, metadata={"format": "pt"})
    assert same_weights(load(tiny_folder, tmp_path), other_vae)


def test_a_file_in_the_original_layout_and_a_checkpoints_vae(
    narrow: Path, checkpoint_file: Path, tmp_path: Path
) -> None:
    tensors = load_file(checkpoint_file)
    prefix = "first_stage_model."
    alone = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    without = {k: v for k, v in tensors.items() if not k.startswith(prefix)}
    vae, pruned = tmp_path / "vae.safetensors", tmp_path / "pruned.safetensors"
    save_file(alone, vae)
    save_file(without, pruned)
    whole = load_model(
        ModelSpec(str(checkpoint_file)), device="cpu", dtype="float32", configuration=narrow
    )
    for file in (vae, checkpoint_file):
        bundle = load(pruned, file, narrow)
        assert same_weights(bundle, whole.vae)


def test_a_tiny_vae_in_a_folder_and_in_a_file(
    tiny_folder: Path, tiny_vae: AutoencoderTiny, tiny_vae_folder: Path, tmp_path: Path
) -> None:
    bundle = load(tiny_folder, tiny_vae_folder)
    assert isinstance(bundle.vae, AutoencoderTiny)
    assert same_weights(bundle, tiny_vae)
    assert (bundle.scaling_factor, bundle.downscale) == (1.0, 8)
    # Without a config.json beside it a file is what TAESD is: diffusers' defaults.
    torch.manual_seed(6)
    default = AutoencoderTiny().eval()
    path = tmp_path / "taesd.safetensors"
    save_file(default.state_dict(), path)
    bundle = load(tiny_folder, path)
    assert same_weights(bundle, default)
    named = [name for name in default.config if not name.startswith("_")]
    as_lists = [json.dumps([c.config[name] for name in named]) for c in (bundle.vae, default)]
    assert as_lists[0] == as_lists[1]


def test_a_tiny_vae_encodes_and_decodes_as_in_diffusers(
    tiny_folder: Path, tiny_vae: AutoencoderTiny, tiny_vae_folder: Path, picture: Pixels
) -> None:
    bundle = load(tiny_folder, tiny_vae_folder)
    pixels = torch.from_numpy(picture).float().permute(2, 0, 1)[None] / 255 * 2 - 1
    with torch.inference_mode():
        want = tiny_vae.encode(pixels).latents
        moments = encode_image(bundle, picture, tile=False)
        assert torch.allclose(moments.mean, want[0], atol=1e-5)
        assert not moments.std.any()
        # No posterior: whatever the draw, the latents are the same.
        sample = moments.sample(torch.randn(4, 16, 16), bundle.scaling_factor)
        assert torch.equal(sample, moments.mean)
        decoded = tiny_vae.decode(want).sample[0].permute(1, 2, 0) / 2 + 0.5
        got = decode_latents(bundle, want[0], tile=False)
    by_hand = (decoded.clamp(0, 1).numpy() * 255).round().astype(int)
    assert np.abs(got.astype(int) - by_hand).max() <= 1


def test_moments_of_a_tiny_vae_are_cached(
    tiny_folder: Path, tiny_vae_folder: Path, picture: Pixels
) -> None:
    encoder = ImageEncoder(load(tiny_folder, tiny_vae_folder), cache_bytes=10**6)
    with torch.inference_mode():
        first, again = (encoder.encode(picture, tile=False) for _ in range(2))
    assert torch.equal(first.mean, again.mean)
    assert (encoder.counts.hits, encoder.counts.misses) == (1, 1)


def test_previews_fit_the_vae_that_is_used(tiny_folder: Path, tiny_vae_folder: Path) -> None:
    bundle = load(tiny_folder, tiny_vae_folder)
    with torch.inference_mode():
        fitted = LatentToRgb.fit(bundle)
        grey = encode_image(bundle, np.full((128, 128, 3), 128, np.uint8), tile=False)
        preview = fitted.begin(grey.mean * bundle.scaling_factor)()
        own = LatentToRgb.fit(load_model(ModelSpec(str(tiny_folder)), device="cpu"))
    assert preview.shape == (16, 16, 3)
    assert not torch.allclose(fitted.weight, own.weight)
    assert torch.isfinite(fitted.weight).all()


def test_the_engine_runs_with_a_tiny_vae(
    tiny_folder: Path, tiny_vae_folder: Path, picture: Pixels
) -> None:
    engine = Engine(load(tiny_folder, tiny_vae_folder), EngineConfig(warm_up=False))
    engine.start()
    request = GenerationRequest(picture, "moss", steps=10, seed=2)
    first, again = (engine.submit(request).wait(60).image for _ in range(2))
    engine.drain(grace=5)
    assert first.shape == picture.shape
    assert np.array_equal(first, again)


def test_what_does_not_fit_is_refused(
    tiny_folder: Path, tmp_path: Path, checkpoint_file: Path
) -> None:
    with pytest.raises(ModelLoadError, match="neither a folder nor a file"):
        load(tiny_folder, tmp_path / "none")
    with pytest.raises(ModelLoadError, match="holds no VAE"):
        load(tiny_folder, tmp_path)
    (unet,) = (tiny_folder / "unet").glob("*.safetensors")
    with pytest.raises(ModelLoadError, match="not a VAE"):
        load(tiny_folder, unet)
    flux = AutoencoderKL(latent_channels=16, norm_num_groups=4, block_out_channels=(8, 8, 8, 8),
                         down_block_types=("DownEncoderBlock2D",) * 4,
                         up_block_types=("UpDecoderBlock2D",) * 4)  # fmt: skip
    flux.save_pretrained(tmp_path / "flux", safe_serialization=True)
    with pytest.raises(ModelLoadError, match="the VAE's latents have 16"):
        load(tiny_folder, tmp_path / "flux")
    shallow = AutoencoderKL(norm_num_groups=4, block_out_channels=(8,))
    shallow.save_pretrained(tmp_path / "shallow", safe_serialization=True)
    with pytest.raises(ModelLoadError, match="1 pixels wide, of the model 8"):
        load(tiny_folder, tmp_path / "shallow")
    folder = shutil.copytree(tiny_folder / "vae", tmp_path / "xl")
    own = json.loads((folder / "config.json").read_text())
    for key, value in (
        ("scaling_factor", 0.13025),
        ("shift_factor", 0.1159),
        ("latents_mean", [0.1, 0.2, 0.3, 0.4]),
        ("latents_std", [1.1, 1.2, 1.3, 1.4]),
    ):
        (folder / "config.json").write_text(json.dumps({**own, key: value}))
        with pytest.raises(ModelLoadError, match=rf"xl.*{key} is .*{re.escape(str(value))}"):
            load(tiny_folder, folder)
    config = tmp_path / "flux" / "config.json"
    config.write_text(json.dumps({"_class_name": "VQModel"}))
    with pytest.raises(ModelLoadError, match="VQModel"):
        load(tiny_folder, tmp_path / "flux")
    with pytest.raises(ModelLoadError, match="can run code"):
        load(tiny_folder, tmp_path / "vae.pt")


@pytest.mark.parametrize("factor", [None, 0, -1.0, math.nan, math.inf, "0.18215"])
def test_a_vae_whose_scaling_factor_is_none_is_refused(
    tiny_folder: Path, tmp_path: Path, factor: object
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    config = folder / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"scaling_factor": factor}))
    said = rf"config\.json: scaling_factor is {re.escape(repr(factor))}, not a number above 0"
    for spec in (
        ModelSpec(str(folder)),
        ModelSpec(str(tiny_folder), vae=str(folder)),
        ModelSpec(str(tiny_folder), preview_vae=str(folder)),
    ):
        with pytest.raises(ModelLoadError, match=said):
            load_model(spec, device="cpu", dtype="float32")


def test_a_tiny_vae_draws_the_previews_and_not_the_pictures(
    tiny_folder: Path, tiny_vae: AutoencoderTiny, tiny_vae_folder: Path
) -> None:
    spec = ModelSpec(str(tiny_folder), preview_vae=str(tiny_vae_folder))
    bundle = load_model(spec, device="cpu", dtype="float32")
    assert type(bundle.vae).__name__ == "AutoencoderKL"
    assert bundle.facts["previews"] == f"AutoencoderTiny, {tiny_vae_folder}"
    latents = torch.randn(4, 8, 8)
    with torch.inference_mode():
        preview = TinyPreview(bundle.preview_vae).begin(latents)()
        whole = tiny_vae.decode(latents[None]).sample[0].permute(1, 2, 0)
    assert preview.shape == (64, 64, 3)
    assert np.abs(preview - ((whole / 2 + 0.5).clamp(0, 1) * 255).numpy()).max() <= 0.51
    previews = drawn_previews(bundle, 320)
    assert previews
    assert {one.shape for one in previews} == {(256, 256, 3)}


@pytest.mark.parametrize(("height", "width"), [(192, 128), (64, 256), (1, 70)])
def test_a_preview_of_a_large_picture_costs_no_more(
    tiny_vae: AutoencoderTiny, height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    decode = tiny_vae.decode
    monkeypatch.setattr(tiny_vae, "decode", lambda x: (sizes.extend(x.shape[2:]), decode(x))[1])
    with torch.inference_mode():
        preview = TinyPreview(tiny_vae).begin(torch.full((4, height, width), torch.nan))()
    assert max(sizes) <= 64
    assert max(preview.shape) == 256
    assert not preview.any()  # What is not finite is not shown, and breaks nothing.


def test_a_preview_vae_that_is_none(
    tiny_folder: Path, other_vae: AutoencoderKL, tmp_path: Path
) -> None:
    other_vae.save_pretrained(tmp_path, safe_serialization=True)
    spec = ModelSpec(str(tiny_folder), preview_vae=str(tmp_path))
    with pytest.raises(ModelLoadError, match="is an AutoencoderKL, too slow for previews"):
        load_model(spec, device="cpu", dtype="float32")
    spec = ModelSpec(str(tiny_folder), preview_vae="/nowhere")
    with pytest.raises(ModelLoadError, match="/nowhere is neither a folder nor a file"):
        load_model(spec, device="cpu", dtype="float32")
