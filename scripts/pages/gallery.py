"""Draw docs/gallery.png and the README's pictures from a running server.

    scripts/serve &
    .venv/bin/python scripts/make_gallery [--url http://127.0.0.1:8000]

Rows: the input beside the 17 styles; edits of colour, thing and background; the strength ladder;
the ten samplers. Every picture but the inputs is an answer of the server.
"""

from __future__ import annotations

import argparse
import base64
import io

import requests
from PIL import Image, ImageDraw, ImageFont

from pipelines.prompt.styles import STYLES
from pipelines.request import CONTRACT_SAMPLERS
from scripts.paths import ROOT
from scripts.training.world.looks import draw
from scripts.training.world.scene import Scene, Thing

SIDE = 320
SHOWN = 192
LABEL = 22
COLUMNS = 9
Cell = tuple[str, Image.Image]


def scene(kind: str, colour: str, background: str) -> Image.Image:
    """One thing in the middle, as the world draws it."""
    thing = Thing(kind, colour, 0.62, 0.5, 0.56)
    return Image.fromarray(draw(Scene((thing,), background, None, SIDE, SIDE, seed=5)))


class Server:
    """Asks a running server for pictures."""

    def __init__(self, url: str, key: str) -> None:
        self.url, self.key = url, key

    def picture(self, image: Image.Image, prompt: str, **fields: object) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        answer = requests.post(
            f"{self.url}/api/generate/basic/imageToImage",
            data={"prompt": prompt, "seed": 7, "steps": 20, **fields},
            files={"init_image": ("input.png", buffer.getvalue())},
            headers={"Authorization": self.key},
            timeout=600,
        ).json()
        if answer["code"] != 0:
            raise SystemExit(f"{prompt}: {answer['message']}")
        return Image.open(io.BytesIO(base64.b64decode(answer["data"]["image"]))).convert("RGB")


def rows_of(server: Server) -> list[list[Cell]]:
    """The gallery's rows of labelled pictures."""
    house = scene("house", "red", "grass")
    words = "a red house on a grass background"
    styles: list[Cell] = [
        ("input", house),
        *((name, server.picture(house, words, style_preset=name)) for name in STYLES),
    ]
    circle, cat = scene("circle", "red", "sky"), scene("cat", "orange", "snow")
    round_edits = ("a blue circle", "a yellow star", "a green heart", "a red circle at night")
    cat_edits = ("a black cat on snow", "an orange fish on snow", "an orange cat on grass")
    edits: list[Cell] = [
        ("input", circle),
        *((prompt, server.picture(circle, prompt)) for prompt in round_edits),
        ("input", cat),
        *((prompt, server.picture(cat, prompt)) for prompt in cat_edits),
    ]
    ladder: list[Cell] = [("input", house)]
    for strength in (0.0, 0.1, 0.2, 0.35, 0.5, 0.6, 0.75, 0.9):
        made = server.picture(house, "a blue house at night", image_strength=strength)
        ladder.append((f"strength {strength}", made))
    samplers: list[Cell] = [
        (sampler.value, server.picture(circle, "a blue circle", sampler=sampler.value))
        for sampler in CONTRACT_SAMPLERS
    ]
    samplers = [("input", circle), *samplers]
    return [styles[:9], styles[9:], edits, ladder, samplers[:9], samplers[9:]]


def compose(rows: list[list[Cell]]) -> Image.Image:
    """All rows in one picture, a label under each cell."""
    height = (SHOWN + LABEL) * len(rows)
    whole = Image.new("RGB", (SHOWN * COLUMNS, height), (250, 250, 250))
    pen = ImageDraw.Draw(whole)
    font = ImageFont.load_default(12)
    for j, row in enumerate(rows):
        for i, (label, image) in enumerate(row):
            x, y = i * SHOWN, j * (SHOWN + LABEL)
            whole.paste(image.resize((SHOWN - 4, SHOWN - 4), Image.Resampling.LANCZOS), (x + 2, y))
            pen.text((x + 4, y + SHOWN), label, fill=(40, 40, 40), font=font)
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--key", default="")
    parser.add_argument("--only-readme", action="store_true", help="the README's two pictures")
    options = parser.parse_args()
    server = Server(options.url, options.key)
    images = ROOT / "docs" / "images"
    images.mkdir(parents=True, exist_ok=True)
    circle = scene("circle", "red", "sky")
    circle.save(images / "input.png")
    server.picture(circle, "a blue circle", image_strength=0.35).save(images / "output.png")
    if not options.only_readme:
        compose(rows_of(server)).save(ROOT / "docs" / "gallery.png")


if __name__ == "__main__":
    main()
