"""Stage 2: a small CLIP. Its text tower becomes the text encoder, its image tower ships beside it.

Contrastive as in Radford et al. 2021, plus one supervised term: linear heads read the first thing's
kind and colour, the background and the style from the pooled text and image embeddings. Pairs in a
batch mostly differ in several words at once, so contrast alone leaves colour and kind loosely bound
for a long time; the heads tell the towers from the start which words matter. The heads are dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from pipelines.prompt.styles import STYLES as TEMPLATES
from scripts.training.data import Drawn, to_model
from scripts.training.tokenizer import encode, write_tokenizer
from scripts.training.trainer import Plan, Run, load_checkpoint
from scripts.training.world.captions import caption
from scripts.training.world.scene import BACKGROUNDS, COLOURS, OBJECTS, STYLES, Scene, sample_scene

WIDTH = 128
IMAGE_SIDE = 64
BATCH = 64

ATTRIBUTES: dict[str, tuple[tuple[str | None, ...], Callable[[Scene], str | None]]] = {
    "kind": (OBJECTS, lambda scene: scene.things[0].kind),
    "colour": (tuple(COLOURS), lambda scene: scene.things[0].colour),
    "background": (BACKGROUNDS, lambda scene: scene.background),
    "style": ((None, *STYLES), lambda scene: scene.style),
}
"""What the heads read: the values of each attribute, and a scene's own."""


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """The vocabulary of captions and style templates, learnt from a fixed set of scenes."""
    if (folder / "vocab.json").exists():
        return CLIPTokenizer.from_pretrained(folder)
    rng = np.random.default_rng(2)
    scenes = [sample_scene(rng, 128, 128, split="any") for _ in range(4000)]
    texts = [caption(scene, rng) for scene in scenes]
    for style in TEMPLATES.values():
        texts += [style.prompt.replace("{prompt}", ""), style.negative_prompt]
    return write_tokenizer(folder, texts)


def make_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """About 1.4 M parameters: three layers of width 128 in each tower, 64-pixel pictures."""
    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "projection_dim": WIDTH,
    }
    text = {
        **tower,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 77,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**tower, "image_size": IMAGE_SIDE, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))


def attribute_targets(scenes: list[Scene]) -> dict[str, torch.Tensor]:
    """Class indices of every attribute, (N,) each."""
    return {
        name: torch.tensor([values.index(of(scene)) for scene in scenes])
        for name, (values, of) in ATTRIBUTES.items()
    }


class WithHeads(torch.nn.Module):
    """CLIP and the heads that only training has."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip
        self.heads = torch.nn.ModuleDict(
            {name: torch.nn.Linear(WIDTH, len(values)) for name, (values, _) in ATTRIBUTES.items()}
        )


def embed_text(clip: CLIPModel, ids: torch.Tensor) -> torch.Tensor:
    """Normalised text embeddings, (N, width). Padding after the end changes nothing: cut it."""
    eos = clip.config.text_config.eos_token_id
    longest = int((ids == eos).int().argmax(dim=1).max()) + 1
    pooled = clip.text_model(ids[:, :longest]).pooler_output
    return F.normalize(clip.text_projection(pooled), dim=-1)


def embed_pictures(clip: CLIPModel, pictures: torch.Tensor) -> torch.Tensor:
    """Normalised embeddings (N, width) of pictures in -1..1 of any size."""
    small = F.interpolate(
        pictures, (IMAGE_SIDE, IMAGE_SIDE), mode="bilinear", antialias=True, align_corners=False
    )
    return F.normalize(clip.visual_projection(clip.vision_model(small).pooler_output), dim=-1)


def train_clip(
    folder: Path,
    tokenizer_folder: Path,
    drawn: Drawn,
    steps: int,
    minutes: float,
    device: torch.device,
) -> None:
    """Train on drawn scenes with fresh captions every step."""
    torch.manual_seed(3)
    tokenizer = make_tokenizer(tokenizer_folder)
    model = WithHeads(make_clip(tokenizer)).to(device)
    run = Run(folder, model, Plan(steps, 1e-3, warm_up=200, minutes=minutes, weight_decay=0.02))
    targets = attribute_targets(drawn.scenes)
    rng = np.random.default_rng(run.step)
    held_back = 512

    def losses(chosen: np.ndarray) -> dict[str, torch.Tensor]:
        texts = [caption(drawn.scenes[i], rng) for i in chosen]
        ids = torch.tensor(encode(tokenizer, texts), device=device)
        index = torch.from_numpy(chosen)
        text = embed_text(model.clip, ids)
        image = embed_pictures(model.clip, to_model(drawn.pictures[index]).to(device))
        scale = model.clip.logit_scale.exp().clamp(max=100)
        logits = scale * text @ image.T
        same = torch.arange(len(chosen), device=device)
        contrast = (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2
        supervised = torch.zeros((), device=device)
        for name, head in model.heads.items():
            wanted = targets[name][index].to(device)
            supervised = supervised + F.cross_entropy(8 * head(text), wanted)
            supervised = supervised + F.cross_entropy(8 * head(image), wanted)
        right = (logits.argmax(dim=1) == same).float().mean()
        return {
            "loss": contrast + 0.25 * supervised,
            "contrast": contrast,
            "supervised": supervised,
            "retrieval": right,
        }

    def step(_: int) -> dict[str, torch.Tensor]:
        return losses(rng.choice(len(drawn.scenes) - held_back, BATCH, replace=False))

    @torch.no_grad()
    def report(_: int) -> dict[str, float]:
        chosen = len(drawn.scenes) - held_back + rng.choice(held_back, BATCH, replace=False)
        return {f"val_{k}": float(v) for k, v in losses(chosen).items()}

    run.train(step, report)


def finished_clip(folder: Path, tokenizer: CLIPTokenizer) -> CLIPModel:
    """The trained towers without the heads."""
    model = WithHeads(make_clip(tokenizer))
    model.load_state_dict(load_checkpoint(folder)["model"])
    return model.clip.eval()


def text_tower(clip: CLIPModel) -> Any:
    """CLIP's text tower as the CLIPTextModel that Stable Diffusion has."""
    from transformers import CLIPTextModel

    encoder = CLIPTextModel(clip.config.text_config)
    states = {
        k.removeprefix("text_model."): v
        for k, v in clip.state_dict().items()
        if k.startswith("text_model.")
    }
    names = set(encoder.state_dict())
    prefixed = {f"text_model.{k}": v for k, v in states.items()}
    encoder.load_state_dict(prefixed if names & set(prefixed) else states)
    return encoder.eval()
