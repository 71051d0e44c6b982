"""LoRAs, in every layout: what is fused is what diffusers fuses, or what the formula says."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from models.bundle import ModelBundle
from models.loading import ldm_keys
from models.loading.loader import ModelLoadError, ModelSpec, load_model

pytestmark = pytest.mark.process

RANK = 4
Tensors = dict[str, torch.Tensor]

UNET_LAYERS = {
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": (64, 64),
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0": (64, 64),
    "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj": (512, 64),
    "up_blocks.0.attentions.0.proj_in": (64, 64),
}
TEXT_LAYERS = {
    "encoder.layers.0.self_attn.q_proj": (32, 32),
    "encoder.layers.1.self_attn.out_proj": (32, 32),
    "encoder.layers.1.mlp.fc1": (64, 32),
}
CONVOLUTION = "down_blocks.0.resnets.0.conv1"


def factors(layer: str, out: int, into: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(down, up); 1 x 1 convolutions where the layer is one."""
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(RANK, into, generator=generator) * 0.1
    up = torch.randn(out, RANK, generator=generator) * 0.1
    if layer.endswith(("proj_in", "proj_out")):
        return down[..., None, None], up[..., None, None]
    return down, up


def all_factors() -> dict[str, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    return {
        part: {
            layer: factors(layer, *shape, seed=i + 10 * len(part))
            for i, (layer, shape) in enumerate(layers.items())
        }
        for part, layers in (("unet", UNET_LAYERS), ("text_encoder", TEXT_LAYERS))
    }


def kohya(alpha: float | None) -> Tensors:
    file: Tensors = {}
    for part, layers in all_factors().items():
        prefix = "lora_unet_" if part == "unet" else "lora_te_text_model_"
        for layer, (down, up) in layers.items():
            name = prefix + layer.replace(".", "_")
            file[f"{name}.lora_down.weight"], file[f"{name}.lora_up.weight"] = down, up
            if alpha is not None:
                file[f"{name}.alpha"] = torch.tensor(alpha)
    return file


def peft() -> Tensors:
    file: Tensors = {}
    for part, layers in all_factors().items():
        prefix = "unet." if part == "unet" else "text_encoder.text_model."
        for layer, (down, up) in layers.items():
            file[f"{prefix}{layer}.lora_A.weight"] = down
            file[f"{prefix}{layer}.lora_B.weight"] = up
    return file


def old_diffusers() -> Tensors:
    """Attention processors of diffusers 0.1x; only attention had such."""
    file: Tensors = {}
    for part, layers in all_factors().items():
        for layer, (down, up) in layers.items():
            name, _, leaf = layer.removesuffix(".0").rpartition(".")
            if part == "unet" and ".attn" in layer:
                stem = f"unet.{name}.processor.{leaf}_lora"
            elif part == "text_encoder" and "self_attn" in layer:
                stem = f"text_encoder.text_model.{layer}.lora_linear_layer"
            else:
                continue
            file[f"{stem}.down.weight"], file[f"{stem}.up.weight"] = down, up
    return file


def original_blocks(bundle: ModelBundle, file: Tensors) -> Tensors:
    """The U-Net's layers named after the original layout's blocks."""
    config = bundle.unet.config
    renamed = {}
    for layer in UNET_LAYERS:
        ldm = ldm_keys.unet_name(layer, config.layers_per_block, config.up_block_types)
        assert "_blocks." in ldm or ldm.startswith("middle_block.")
        for side in ("lora_down.weight", "lora_up.weight", "alpha"):
            ours, theirs = (f"lora_unet_{n.replace('.', '_')}.{side}" for n in (layer, ldm))
            if ours in file:
                renamed[theirs] = file[ours]
    return renamed


def load(tiny_folder: Path, *loras: tuple[str, float]) -> ModelBundle:
    return load_model(ModelSpec(str(tiny_folder), loras=loras), device="cpu", dtype="float32")


def by_formula(tiny: ModelBundle, scale: float, names: set[str] | None = None) -> Tensors:
    """Every changed weight, with ``scale * up @ down`` added."""
    wanted = {}
    for part, layers in all_factors().items():
        state = getattr(tiny, part).state_dict()
        for layer, (down, up) in layers.items():
            if names is None or layer in names:
                weight = state[f"{layer}.weight"]
                delta = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
                wanted[f"{part}.{layer}.weight"] = weight + scale * delta
    return wanted


def assert_changed(
    tiny: ModelBundle, fused: ModelBundle, wanted: Mapping[str, torch.Tensor]
) -> None:
    """Exactly the ``wanted`` weights differ from the tiny model's, and are those."""
    for part in ("unet", "text_encoder"):
        before = getattr(tiny, part).state_dict()
        for name, value in getattr(fused, part).state_dict().items():
            if (key := f"{part}.{name}") in wanted:
                assert not torch.equal(value, before[name]), key
                torch.testing.assert_close(value, wanted[key], atol=1e-6, rtol=1e-5)
            else:
                assert torch.equal(value, before[name]), key


@pytest.mark.parametrize("alpha", [None, 1.0, 8.0])
@pytest.mark.parametrize("weight", [1.0, 0.6, -0.5])
def test_kohyas_layout(
    tiny_folder: Path, tiny: ModelBundle, tmp_path: Path, alpha: float | None, weight: float
) -> None:
    path = tmp_path / "style.safetensors"
    save_file(kohya(alpha), path)
    fused = load(tiny_folder, (str(path), weight))
    scale = weight * (RANK if alpha is None else alpha) / RANK
    assert_changed(tiny, fused, by_formula(tiny, scale))
    assert fused.facts["loras"].startswith(f"style.safetensors at {weight:g} (7 layers")


def test_the_same_as_diffusers_loads_and_fuses(
    tiny_folder: Path, tiny: ModelBundle, tmp_path: Path
) -> None:
    path = tmp_path / "lora.safetensors"
    save_file(peft(), path)
    fused = load(tiny_folder, (str(path), 0.7))
    pipe = StableDiffusionPipeline.from_pretrained(
        tiny_folder, safety_checker=None, feature_extractor=None
    )
    pipe.load_lora_weights(tmp_path, weight_name=path.name)
    pipe.fuse_lora(lora_scale=0.7)
    pipe.unload_lora_weights()
    wanted = {
        f"{part}.{layer}.weight": getattr(pipe, part).state_dict()[f"{layer}.weight"]
        for part, layers in (("unet", UNET_LAYERS), ("text_encoder", TEXT_LAYERS))
        for layer in layers
    }
    assert_changed(tiny, fused, wanted)


def test_pefts_metadata(tiny_folder: Path, tiny: ModelBundle, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    said = {"unet.lora_alpha": 8, "text_encoder.lora_alpha": 8, "unet.r": RANK}
    save_file(peft(), path, metadata={"lora_adapter_metadata": json.dumps(said)})
    assert_changed(tiny, load(tiny_folder, (str(path), 1.0)), by_formula(tiny, 2.0))
    said |= {"unet.use_dora": True}
    save_file(peft(), path, metadata={"lora_adapter_metadata": json.dumps(said)})
    with pytest.raises(ModelLoadError, match="is a DoRA"):
        load(tiny_folder, (str(path), 1.0))


def test_alpha_by_pattern_and_by_root_of_rank(
    tiny_folder: Path, tiny: ModelBundle, tmp_path: Path
) -> None:
    path = tmp_path / "lora.safetensors"
    said = {
        "unet.lora_alpha": RANK,
        "unet.alpha_pattern": {"attn1.to_q": 3 * RANK},
        "text_encoder.lora_alpha": RANK,
        "text_encoder.use_rslora": True,
    }
    save_file(peft(), path, metadata={"lora_adapter_metadata": json.dumps(said)})
    to_q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    wanted = by_formula(tiny, 1.0, set(UNET_LAYERS))
    wanted |= by_formula(tiny, 3.0, {to_q}) | by_formula(tiny, 2.0, set(TEXT_LAYERS))
    assert_changed(tiny, load(tiny_folder, (str(path), 1.0)), wanted)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "renamed.safetensors"])
@pytest.mark.parametrize(
    ("config", "scale", "special"),
    [
        ({"lora_alpha": 4 * RANK}, 4.0, 4.0),
        ({"lora_alpha": 4 * RANK, "use_rslora": True}, 8.0, 8.0),
        ({"lora_alpha": RANK, "alpha_pattern": {"^down.*attn1.to_q": 3 * RANK}}, 1.0, 3.0),
        ({"lora_alpha": RANK, "alpha_pattern": {"to_q": 3 * RANK, "attn1.to_q": 9}}, 1.0, 3.0),
        ({"lora_alpha": RANK, "alpha_pattern": {"attn1.to_q": 3 * RANK, "to_q": 9}}, 1.0, 3.0),
        ({"lora_alpha": RANK, "r": 99, "rank_pattern": {"attn1.to_q": RANK}}, 1.0, 1.0),
    ],
)
def test_the_configuration_beside_an_adapter_of_peft(
    tiny_folder: Path,
    tiny: ModelBundle,
    tmp_path: Path,
    name: str,
    config: dict[str, object],
    scale: float,
    special: float,
) -> None:
    file = {
        f"base_model.model.{layer.removeprefix('unet.')}": tensor
        for layer, tensor in peft().items()
        if layer.startswith("unet.")
    }
    save_file(file, tmp_path / name)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
    to_q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    wanted = by_formula(tiny, scale, set(UNET_LAYERS)) | by_formula(tiny, special, {to_q})
    bundle = load(tiny_folder, (str(tmp_path / name), 1.0))
    assert_changed(tiny, bundle, wanted)
    assert "alpha" not in bundle.facts["loras"]
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": "x"}')
    with pytest.raises(ModelLoadError, match=r"adapter_config\.json is not usable"):
        load(tiny_folder, (str(tmp_path / name), 1.0))


def test_an_alpha_that_nothing_says_is_a_fact(tiny_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 99}')  # of another file
    save_file(kohya(None), path)
    facts = load(tiny_folder, (str(path), 1.0)).facts["loras"]
    assert facts == "lora.safetensors at 1 (7 layers; says no alpha, taken to be the rank)"
    save_file(kohya(1.0), path)
    assert "alpha" not in load(tiny_folder, (str(path), 1.0)).facts["loras"]


def test_the_older_layout_of_diffusers(
    tiny_folder: Path, tiny: ModelBundle, tmp_path: Path
) -> None:
    path = tmp_path / "old.safetensors"
    save_file(old_diffusers(), path)
    names = {n for n in (*UNET_LAYERS, *TEXT_LAYERS) if "attn" in n}
    assert len(old_diffusers()) == 2 * len(names) == 8
    assert_changed(tiny, load(tiny_folder, (str(path), 1.0)), by_formula(tiny, 1.0, names))


def test_the_original_names_of_blocks(tiny_folder: Path, tiny: ModelBundle, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file(original_blocks(tiny, kohya(2.0)), path)
    wanted = by_formula(tiny, 0.5, set(UNET_LAYERS))
    assert_changed(tiny, load(tiny_folder, (str(path), 1.0)), wanted)


@pytest.mark.parametrize("tucker", [False, True])
def test_convolutions(tiny_folder: Path, tiny: ModelBundle, tmp_path: Path, tucker: bool) -> None:
    """A LoCon's change of a convolution is its two (three) convolutions, one after the other."""
    generator = torch.Generator().manual_seed(1)
    name = f"lora_unet_{CONVOLUTION.replace('.', '_')}"
    down = torch.randn(RANK, 32, *((1, 1) if tucker else (3, 3)), generator=generator)
    mid = torch.randn(RANK, RANK, 3, 3, generator=generator)
    up = torch.randn(32, RANK, 1, 1, generator=generator)
    file = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    file |= {f"{name}.lora_mid.weight": mid} if tucker else {}
    file[f"{name}.alpha"] = torch.tensor(2.0)
    path = tmp_path / "locon.safetensors"
    save_file(file, path)
    fused = load(tiny_folder, (str(path), 1.0))
    x = torch.randn(1, 32, 6, 6, generator=generator)
    plain, changed = (b.unet.get_submodule(CONVOLUTION) for b in (tiny, fused))
    conv = torch.nn.functional.conv2d
    if tucker:
        by_hand = conv(conv(conv(x, down), mid, padding=1), up)
    else:
        by_hand = conv(conv(x, down, padding=1), up)
    with torch.no_grad():
        torch.testing.assert_close(
            changed(x), plain(x) + by_hand * 2.0 / RANK, atol=1e-3, rtol=1e-4
        )


def test_several_add_up(tiny_folder: Path, tiny: ModelBundle, tmp_path: Path) -> None:
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(kohya(None), first)
    save_file(peft(), second)
    fused = load(tiny_folder, (str(first), 0.25), (str(second), 0.5))
    assert_changed(tiny, fused, by_formula(tiny, 0.75))


def test_what_would_be_left_out_is_an_error(tiny_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    good = kohya(None)
    stray = {"lora_unet_down_blocks_9_x.lora_down.weight": torch.zeros(4, 4)}
    save_file(good | stray, path)
    with pytest.raises(ModelLoadError, match=r"1 tensors, such as lora_unet_down_blocks_9_x"):
        load(tiny_folder, (str(path), 1.0))
    one_sided = dict(good)
    del one_sided["lora_unet_up_blocks_0_attentions_0_proj_in.lora_up.weight"]
    save_file(one_sided, path)
    with pytest.raises(ModelLoadError, match="has not both its factors"):
        load(tiny_folder, (str(path), 1.0))
    wide = dict(good)
    wide["lora_te_text_model_encoder_layers_1_mlp_fc1.lora_down.weight"] = torch.zeros(RANK, 48)
    save_file(wide, path)
    with pytest.raises(ModelLoadError, match="another architecture"):
        load(tiny_folder, (str(path), 1.0))


def test_what_is_no_lora(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="there is no LoRA file"):
        load(tiny_folder, (str(tmp_path / "none.safetensors"), 1.0))
    vae = next((tiny_folder / "vae").glob("*.safetensors"))
    with pytest.raises(ModelLoadError, match=r"a VAE alone.* not a LoRA"):
        load(tiny_folder, (str(vae), 1.0))
    path = tmp_path / "loha.safetensors"
    save_file({"lora_unet_x.hada_w1_a": torch.zeros(4, 4)}, path)
    with pytest.raises(ModelLoadError, match=r"LyCORIS.*not a LoRA.*merged"):
        load(tiny_folder, (str(path), 1.0))
    pickled = tmp_path / "lora.pt"
    pickled.write_bytes(b"")
    with pytest.raises(ModelLoadError, match="can run code"):
        load(tiny_folder, (str(pickled), 1.0))


def renamed(file: Tensors, old: str, new: str) -> Tensors:
    return {name.replace(old, new): tensor for name, tensor in file.items()}


def comfy(bundle: ModelBundle) -> Tensors:
    """Dots throughout: the U-Net by the original layout's names, the text encoder by its own."""
    config = bundle.unet.config
    file: Tensors = {}
    for part, layers in all_factors().items():
        for layer, (down, up) in layers.items():
            ldm = ldm_keys.unet_name(layer, config.layers_per_block, config.up_block_types)
            unet = part == "unet"
            stem = f"diffusion_model.{ldm}" if unet else f"text_encoders.clip_l.transformer.{TEXT}"
            name = stem if unet else f"{stem}.{layer}"
            file[f"{name}.lora_A.weight"], file[f"{name}.lora_B.weight"] = down, up
    return file


TEXT = "text_model"


@pytest.mark.parametrize(
    "of",
    [
        lambda bundle: renamed(peft(), "unet.", "unet.base_model.model."),
        lambda bundle: renamed(peft(), "unet.", "base_model.model.unet."),
        lambda bundle: renamed(
            renamed(peft(), "lora_A.weight", "lora_A.default_0.weight"),
            "lora_B.weight",
            "lora_B.default_0.weight",
        ),
        lambda bundle: renamed(
            renamed(peft(), "lora_A.", "lora_A.my-style."), "lora_B.", "lora_B.my-style."
        ),
        lambda bundle: renamed(peft(), "unet.", "diffusion_model."),
        lambda bundle: renamed(peft(), "text_encoder.text_model.", "text_encoder."),
        lambda bundle: renamed(peft(), "text_encoder.text_model.", "text_model."),
        lambda bundle: renamed(kohya(None), "lora_te_", "lora_te1_"),
        comfy,
    ],
)
def test_key_prefixes_of_the_common_trainers(
    tiny_folder: Path, tiny: ModelBundle, tmp_path: Path, of: Callable[[ModelBundle], Tensors]
) -> None:
    path = tmp_path / "lora.safetensors"
    save_file(of(tiny), path)
    assert_changed(tiny, load(tiny_folder, (str(path), 1.0)), by_formula(tiny, 1.0))


def test_the_words_that_a_lora_brings(tiny_folder: Path, tiny: ModelBundle, tmp_path: Path) -> None:
    """kohya's and OneTrainer's bundles: words beside layers."""
    path = tmp_path / "lora.safetensors"
    learnt = {
        "bundle_emb.My.Style.emb_params": torch.full((2, 32), 0.5),
        "bundle_emb.toy.string_to_param.*": torch.full((1, 32), 0.25),
        "bundle_emb.cat.clip_l": torch.full((3, 32), 0.75),
    }
    save_file(kohya(None) | learnt, path)
    fused = load(tiny_folder, (str(path), 1.0))
    assert {word: len(rows) for word, rows in fused.embeddings.items()} == {
        "my.style": 2,
        "toy": 1,
        "cat": 3,
    }
    table = fused.text_encoder.get_input_embeddings().weight
    assert table[fused.embeddings["toy"][0]].eq(0.25).all()
    assert fused.facts["loras"].startswith("lora.safetensors at 1 (7 layers")
    before = tiny.text_encoder.get_input_embeddings().weight
    assert torch.equal(table[: len(before)], before)


def broken(name: str, value: torch.Tensor) -> Tensors:
    return {**kohya(1.0), f"lora_unet_up_blocks_0_attentions_0_proj_in.{name}": value}


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        (
            broken("lora_up.weight", torch.full((64, RANK), math.nan)),
            "proj_in.lora_up.weight holds",
        ),
        (broken("lora_down.weight", torch.full((RANK, 64), math.inf)), "holds NaN or infinity"),
        (broken("alpha", torch.tensor(math.nan)), "proj_in.alpha holds NaN or infinity"),
        (broken("alpha", torch.ones(2)), "proj_in.alpha has shape"),
        (broken("alpha", torch.tensor(3e38)), r"at 1 changes unet\..*proj_in by .*beyond half"),
        (
            broken("lora_up.weight", torch.full((64, RANK), 3e38)),
            "proj_in by .*beyond half precision",
        ),
        (broken("alpha", torch.tensor(1e8)), "proj_in by .*beyond half precision"),
        (broken("lora_up.weight", torch.zeros(64)), "lora_up.weight has shape"),
        (broken("lora_down.weight", torch.zeros(0, 64)), "lora_down.weight has shape"),
        (broken("lora_up.weight", torch.ones(64, RANK, dtype=torch.int8)), "no floating point"),
    ],
)
def test_a_damaged_file_is_refused_by_name(
    tiny_folder: Path, tmp_path: Path, file: Tensors, problem: str
) -> None:
    path = tmp_path / "bad.safetensors"
    save_file(file, path)
    with pytest.raises(ModelLoadError, match=rf"bad\.safetensors.*{problem}"):
        load(tiny_folder, (str(path), 1.0))


def test_the_lora_that_overflows_is_the_one_that_is_named(
    tiny_folder: Path, tmp_path: Path
) -> None:
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    save_file(kohya(1.0), good)
    save_file(broken("alpha", torch.tensor(3e38)), bad)
    for order in ((good, bad), (bad, good)):
        with pytest.raises(ModelLoadError, match=r"bad\.safetensors at 0\.5 changes"):
            load(tiny_folder, *((str(path), 0.5) for path in order))


@pytest.mark.parametrize(
    "metadata", ["[" * 100_000, "[]", '{"unet.lora_alpha": "x"}', '{"unet.lora_alpha": NaN}',
                 '{"unet.alpha_pattern": {"(": 1}}', '{"unet.alpha_pattern": 3}']
)  # fmt: skip
def test_metadata_that_is_no_use_is_a_reason(
    tiny_folder: Path, tmp_path: Path, metadata: str
) -> None:
    path = tmp_path / "lora.safetensors"
    save_file(peft(), path, metadata={"lora_adapter_metadata": metadata})
    with pytest.raises(ModelLoadError, match="its lora_adapter_metadata is not usable"):
        load(tiny_folder, (str(path), 1.0))


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", (4, 32), "XL"),
        ("lora_unet_input_blocks_4_1_x_attn2_to_k.lora_down.weight", (4, 2048), "XL"),
        ("unet.x.attn2.to_k.lora_A.default_0.weight", (4, 1024), r"2\.x"),
        ("diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight", (4, 32), "Flux"),
        ("transformer.joint_blocks.0.x.lora_A.weight", (4, 32), "Stable Diffusion 3"),
        ("diffusion_model.blocks.0.attn.q.lora_A.weight", (4, 32), "a diffusion transformer"),
        ("bundle_emb.toy.clip_g", (4, 1280), "XL"),
    ],
)
def test_a_lora_for_another_model_is_named_for_what_it_is(
    tiny_folder: Path, tmp_path: Path, name: str, shape: tuple[int, ...], words: str
) -> None:
    path = tmp_path / "lora.safetensors"
    save_file(kohya(None) | {name: torch.zeros(shape)}, path)
    with pytest.raises(ModelLoadError, match=f"is a LoRA for .*{words}.*, not for Stable"):
        load(tiny_folder, (str(path), 1.0))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x.hada_w1_a", "LoHa"),
        ("x.lokr_w1", "LoKr"),
        ("x.oft_blocks", "OFT"),
        ("x.dora_scale", "DoRA"),
        ("base_model.model.x.lora_magnitude_vector.default_0", "DoRA"),
        ("lora_unet_x.diff", "norms"),
        ("lora_unet_x.diff_b", "norms"),
        ("lora_unet_x.w_norm", "norms"),
        ("unet.x.lora_B.default_0.bias", "norms"),
    ],
)
def test_other_methods_are_named_for_what_they_are(
    tiny_folder: Path, tmp_path: Path, name: str, words: str
) -> None:
    path = tmp_path / "lora.safetensors"
    save_file(kohya(None) | {name: torch.zeros(4)}, path)
    with pytest.raises(ModelLoadError, match=f"{words}.*not a LoRA.*merged"):
        load(tiny_folder, (str(path), 1.0))
