"""Draw the pictures of the page at `/` into server/web/pictures, with a running server's help.

    scripts/serve &
    .venv/bin/python scripts/make_page_pictures [--url http://127.0.0.1:8000]

The samples are drawn by the world that the embedded model was trained on; a thumbnail of each
style preset is an answer of the server to one of them.
"""

from __future__ import annotations

import argparse
import base64
import io
import json

import requests
from PIL import Image

from pipelines.prompt.styles import STYLES
from scripts.paths import ROOT
from scripts.training.world.looks import draw
from scripts.training.world.scene import Scene, Thing

FOLDER = ROOT / "server" / "web" / "pictures"
THUMBNAIL = 112
SAMPLES = (
    ("boat", "white boat on the ocean", ("white", "ocean"), (512, 384), "a red boat at sunset"),
    ("star", "yellow star at night", ("yellow", "night"), (384, 384), "a pink star"),
    ("house", "red house on grass", ("red", "grass"), (384, 384), "a red house on snow"),
    ("tree", "green tree at sunset", ("green", "sunset"), (384, 512), "a green tree on snow"),
    ("car", "blue car in a desert", ("blue", "desert"), (512, 384), "a purple car"),
    ("cat", "orange cat on snow", ("orange", "snow"), (384, 384), "an orange cat on the grass"),
)
"""Thing and file, what it shows, colour and background, size, a prompt to try on it; first what the
model does best."""


def drawn(kind: str, colour: str, background: str, size: tuple[int, int]) -> Image.Image:
    """One thing in the middle of a background."""
    thing = Thing(kind, colour, 0.62, 0.5, 0.56)
    return Image.fromarray(draw(Scene((thing,), background, None, *size, seed=5)))


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def answer(url: str, picture: bytes, prompt: str, **fields: object) -> Image.Image:
    """The server's picture."""
    response = requests.post(
        f"{url}/api/generate/basic/imageToImage",
        data={"prompt": prompt, "seed": 7, **fields},
        files={"init_image": ("input.png", picture)},
        timeout=600,
    ).json()
    if response["code"] != 0:
        raise SystemExit(f"{prompt}: {response['message']}")
    return Image.open(io.BytesIO(base64.b64decode(response["data"]["image"]))).convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    url = parser.parse_args().url
    FOLDER.mkdir(parents=True, exist_ok=True)
    listed = []
    for name, shows, scene, size, prompt in SAMPLES:
        (FOLDER / f"{name}.png").write_bytes(png(drawn(name, *scene, size)))
        width, height = size
        listed.append(
            {"file": f"{name}.png", "shows": shows, "prompt": prompt}
            | {"width": width, "height": height}
        )
    # "Start from noise" sends a picture of which nothing stays.
    (FOLDER / "blank.png").write_bytes(png(Image.new("RGB", (320, 320), (128, 128, 128))))
    (FOLDER / "samples.json").write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
    house = png(drawn("house", "red", "grass", (320, 320)))
    for style in STYLES:
        made = answer(url, house, "a red house on a grass background", style_preset=style)
        made = made.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
        made.save(FOLDER / f"style-{style}.jpg", quality=85, optimize=True)
        print(f"style-{style}.jpg", flush=True)


if __name__ == "__main__":
    main()
