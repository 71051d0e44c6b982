"""Draw docs/images/weights.png: the weighting syntax's own examples, side by side at one seed.

    .venv/bin/python scripts/show_weights [--model embedded]

A row a weighted word, a column a way to write it. Everything else is the same in a row.
"""

from __future__ import annotations

import argparse

from PIL import Image, ImageDraw, ImageFont

from models.loading.loader import load_bundle
from pipelines.engine.engine import Engine, EngineConfig
from pipelines.prompt.weights import parse_weights
from pipelines.request import GenerationRequest
from scripts.paths import ROOT
from scripts.training.measures import SIDE, make
from scripts.training.world.looks import draw
from scripts.training.world.scene import Scene, Thing

SHOWN, LABEL = 160, 34
WAYS = (
    "word",
    "(word)",
    "((word))",
    "[word]",
    "(word:1.5)",
    "(word:0.25)",
    "(word:0)",
    r"\(word\)",
)
ROWS = (
    ("a {} circle on a sky background", "blue"),
    ("a red circle on a {} background", "grass"),
)


def weight_of(way: str) -> str:
    """What the parser makes of a way to write a word, in words."""
    fragment = parse_weights(way)[0]
    return f"{fragment.text}: {fragment.weight:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    engine = Engine(load_bundle(options.model, device="cpu", dtype="float32"), EngineConfig())
    engine.start()
    thing = Thing("circle", "red", 0.62, 0.5, 0.56)
    image = draw(Scene((thing,), "sky", None, SIDE, SIDE, seed=5))
    size = (SHOWN * (len(WAYS) + 1), (SHOWN + LABEL) * len(ROWS))
    whole = Image.new("RGB", size, (250, 250, 250))
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(11)
    for j, (template, word) in enumerate(ROWS):
        ways = [way.replace("word", word) for way in WAYS]
        requests = [
            GenerationRequest(image, template.format(way), steps=20, seed=options.seed)
            for way in ways
        ]
        pixels = ((make(engine, requests) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        labels = [template.format("..."), *(f"{way}\n{weight_of(way)}" for way in ways)]
        for i, (label, cell) in enumerate(zip(labels, [image, *pixels], strict=True)):
            x, y = i * SHOWN, j * (SHOWN + LABEL)
            small = Image.fromarray(cell).resize((SHOWN - 4, SHOWN - 4), Image.Resampling.LANCZOS)
            whole.paste(small, (x + 2, y))
            if i == 0:
                label = label.replace(" on ", "\non ")
            pen.text((x + 4, y + SHOWN - 4), label, fill=(40, 40, 40), font=font, spacing=1)
    engine.drain()
    whole.save(ROOT / "docs" / "images" / "weights.png", optimize=True)


if __name__ == "__main__":
    main()
