"""Measure CLIP guidance on the embedded model: what each preset gains and costs, and pictures.

    .venv/bin/python scripts/measure_guidance --count 100 --write --pictures

Over drawn-world edits at image_strength 0.35, the same seeds with and without guidance:

similarity  cosine of CLIP's embeddings of the whole picture and the prompt, mean
better      share of pictures that are more similar than the unguided one of the same seed
asked       share of edits whose changed attribute the independent judge reads as asked
all four    share of all attributes (kind, colour, background, style) that it reads as asked
cost        CPU time of one request over that of an unguided one, alone on one thread

--write puts the table in docs/benchmarks/guidance.md; --pictures draws docs/images/guidance.png,
and with --count 0 nothing else.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from models.clip import ClipModel
from models.loading.loader import load_bundle
from pipelines.denoise.clip_guidance import PRESETS
from pipelines.engine.engine import Engine, EngineConfig
from pipelines.request import ClipGuidancePreset, GenerationRequest
from scripts.paths import ROOT
from scripts.training.judge import LABELS, Judge, load_judge
from scripts.training.measures import SIDE, Edit, edits, make, request_for, right
from scripts.training.world.looks import draw
from scripts.training.world.scene import Scene, Thing

SEED = 35
SHOWN, LABEL = 160, 20
NONE = ClipGuidancePreset.NONE
ALL = (NONE, *PRESETS)
SHOWN_EDITS = (
    ("red", "circle", "sky", "blue", "circle", "sky"),
    ("orange", "cat", "snow", "orange", "fish", "snow"),
    ("green", "house", "grass", "red", "house", "night"),
)


@dataclass(frozen=True)
class Measured:
    """What one preset did; ``similarities`` is (count,)."""

    preset: ClipGuidancePreset
    similarities: np.ndarray
    asked: float
    all_four: float


def similarities(
    clip: ClipModel, requests: list[GenerationRequest], pictures: torch.Tensor
) -> np.ndarray:
    """Cosine of each picture, (N, 3, H, W) in -1..1, and its request's prompt, (N,)."""
    with torch.inference_mode():
        texts = torch.stack([clip.embed_text(request.prompt) for request in requests])
        seen = clip.embed_images(clip.resized(pictures / 2 + 0.5))
        return np.asarray((texts * seen).sum(dim=-1).numpy())


def cost(engine: Engine, request: GenerationRequest, repeats: int) -> float:
    """Seconds of CPU that one request takes, the least of ``repeats``."""
    taken = []
    for _ in range(repeats):
        began = time.process_time()
        engine.submit(request).wait()
        taken.append(time.process_time() - began)
    return min(taken)


def one_thing(colour: str, kind: str, background: str) -> Scene:
    return Scene((Thing(kind, colour, 0.62, 0.5, 0.56),), background, None, SIDE, SIDE, seed=5)


def picture_rows(engine: Engine) -> Image.Image:
    """A row an edit: the input, then every preset at one seed."""
    width, height = SHOWN * (len(ALL) + 1), (SHOWN + LABEL) * len(SHOWN_EDITS)
    whole = Image.new("RGB", (width, height), (250, 250, 250))
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(11)
    for j, words in enumerate(SHOWN_EDITS):
        source, target = draw(one_thing(*words[:3])), one_thing(*words[3:])
        request = request_for(target, source, 7, image_strength=0.35)
        pictures = make(engine, [replace(request, clip_guidance=preset) for preset in ALL])
        pixels = ((pictures + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        cells = [("input", source), *zip((p.value for p in ALL), pixels, strict=True)]
        for i, (label, cell) in enumerate(cells):
            x, y = i * SHOWN, j * (SHOWN + LABEL)
            small = Image.fromarray(cell).resize((SHOWN - 4, SHOWN - 4), Image.Resampling.LANCZOS)
            whole.paste(small, (x + 2, y))
            words_below = request.prompt.removesuffix(" background") if i == 0 else label
            pen.text((x + 4, y + SHOWN - 2), words_below, fill=(40, 40, 40), font=font)
    return whole


def table(measured: list[Measured], costs: dict[ClipGuidancePreset, float]) -> str:
    """Markdown."""
    base = measured[0].similarities
    lines = [
        "| preset | similarity | better | asked | all four | cost |",
        "|---|---|---|---|---|---|",
    ]
    for one in measured:
        better = "" if one.preset is NONE else f"{100 * (one.similarities > base).mean():.0f} %"
        ratio = f"{costs[one.preset] / costs[NONE]:.2f}" if costs else ""
        lines.append(
            f"| {one.preset} | {one.similarities.mean():.4f} | {better} "
            f"| {100 * one.asked:.0f} % | {100 * one.all_four:.0f} % | {ratio} |"
        )
    return "\n".join(lines)


def page(lines: str, count: int, steps: int) -> str:
    command = f"scripts/measure_guidance --count {count} --steps {steps} --write --pictures"
    return f"""# CLIP guidance

What each `clip_guidance_preset` does to the embedded model's pictures, over {count} edits of the
drawn world at `image_strength` 0.35, {steps} steps, the default guidance scale and K_DPMPP_2M, with
the same seeds in every row. Printed by

    .venv/bin/python {command}

{lines}

- *similarity*: cosine of the CLIP embeddings of picture and prompt, mean; by the CLIP that guides.
- *better*: share of the pictures that are more similar than the unguided one of the same seed.
- *asked*, *all four*: share of the changed attributes, and of all attributes, that the independent
  judge of the model card reads as asked. It shares nothing with CLIP.
- *cost*: CPU time of one request alone, over an unguided one's. In a batch, guided requests alone
  pay. What is below 1 is the machine's noise.

![one input at every preset](../images/guidance.png)

The input, unguided, and every preset, at one seed.

The strengths (`pipelines/denoise/clip_guidance.py`) were chosen on other edits than these (SLOW's
on these): as strong as raises the similarity of nearly every picture (more raises the mean, and
lowers some), and rising from FAST_BLUE to SLOWEST, so that presets differ in what they do and not
in cost alone.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--count", type=int, default=100, help="edits")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3, help="of the cost; 0 leaves it out")
    parser.add_argument("--presets", nargs="*", default=[p.value for p in PRESETS])
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--judge", type=Path, default=ROOT / "tests" / "data" / "judge.safetensors")
    parser.add_argument("--write", action="store_true", help="write the page")
    parser.add_argument("--pictures", action="store_true", help="draw the pictures")
    options = parser.parse_args()
    bundle, judge = (
        load_bundle(options.model, device="cpu", dtype="float32"),
        load_judge(options.judge),
    )
    if bundle.clip is None:
        raise SystemExit(f"{options.model} ships no CLIP model")
    engine = Engine(bundle, EngineConfig())
    engine.start()
    if options.pictures:
        picture_rows(engine).save(ROOT / "docs" / "images" / "guidance.png", optimize=True)
    if options.count:
        measure(options, engine, bundle.clip, judge)
    engine.drain()


def measure(options: argparse.Namespace, engine: Engine, clip: ClipModel, judge: Judge) -> None:
    """Print the table line by line as it grows, then whole, and write the page if asked to."""
    asked: list[Edit] = edits(options.count, SEED)
    requests = [
        request_for(
            edit.target, draw(edit.source), 4000 + i, image_strength=0.35, steps=options.steps
        )
        for i, edit in enumerate(asked)
    ]
    chosen = [NONE, *(ClipGuidancePreset(name) for name in options.presets)]
    measured: list[Measured] = []
    for preset in chosen:
        pictures = make(engine, [replace(request, clip_guidance=preset) for request in requests])
        found = right(judge, pictures, [edit.target for edit in asked])
        measured.append(
            Measured(
                preset,
                similarities(clip, requests, pictures),
                float(np.mean([found[edit.changed][i] for i, edit in enumerate(asked)])),
                float(np.mean([found[name].mean() for name in LABELS])),
            )
        )
        print(table([measured[0], measured[-1]], {}).splitlines()[-1], flush=True)
    costs = {}
    if options.repeats:
        torch.set_num_threads(1)
        costs = {
            preset: cost(engine, replace(requests[0], clip_guidance=preset), options.repeats)
            for preset in chosen
        }
    lines = table(measured, costs)
    print(lines, flush=True)
    if options.write:
        out = ROOT / "docs" / "benchmarks" / "guidance.md"
        out.write_text(page(lines, options.count, options.steps), encoding="utf-8")


if __name__ == "__main__":
    main()
