"""Time one request of the contract through each protocol, as ratios to the plain one.

Needs a running server that is open to all, best alone on its machine. A round asks each protocol
once, in another order each time, for the same picture; a ratio is the median of its rounds'.
"""

from __future__ import annotations

import argparse
import base64
import io
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import requests
from PIL import Image

SIDE = 320
PROMPT = "a blue circle"


def _input() -> bytes:
    """Return a PNG of soft colours, `SIDE` each way."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    pixels = (np.stack([x, y, 1 - x], axis=-1) * 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _asked(url: str, body: bytes, steps: int) -> dict[str, Callable[[int], requests.Response]]:
    """Return by protocol what posts the request with a seed and returns the answer."""
    encoded = base64.b64encode(body).decode()
    files = {"init_image": ("a.png", body, "image/png")}

    def post(path: str, **options: Any) -> requests.Response:
        response = requests.post(url + path, timeout=600, **options)
        response.raise_for_status()
        return response

    def contract(seed: int) -> requests.Response:
        data = {"prompt": PROMPT, "steps": steps, "seed": seed, "sampler": "K_EULER"}
        return post("/api/generate/basic/imageToImage", data=data, files=files)

    def openai(seed: int) -> requests.Response:
        data = {"prompt": PROMPT, "steps": steps, "seed": seed, "sampler": "K_EULER"}
        data |= {"size": f"{SIDE}x{SIDE}", "image_strength": 0.35}
        return post("/v1/images/edits", data=data, files={"image": files["init_image"]})

    def stability(seed: int) -> requests.Response:
        data = {"text_prompts[0][text]": PROMPT, "steps": steps, "seed": seed}
        data |= {"sampler": "K_EULER", "image_strength": 0.35}
        engine = "stable-diffusion-v1-6"
        return post(f"/v1/generation/{engine}/image-to-image", data=data, files=files)

    def a1111(seed: int) -> requests.Response:
        # Its steps are counted otherwise: 30 at 0.62 are the contract's 30 at 0.35.
        denoising = 0.62 if steps == 30 else 0.65
        json = {"init_images": [encoded], "prompt": PROMPT, "steps": steps, "seed": seed}
        json |= {"width": SIDE, "height": SIDE, "denoising_strength": denoising}
        return post("/sdapi/v1/img2img", json=json | {"sampler_name": "Euler"})

    return {"contract": contract, "openai": openai, "stability": stability, "a1111": a1111}


def measure(url: str, rounds: int, steps: int) -> dict[str, list[float]]:
    """Return the seconds of each protocol's requests, `rounds` of them."""
    asked = _asked(url, _input(), steps)
    seconds: dict[str, list[float]] = {name: [] for name in asked}
    for ask in asked.values():
        ask(1)  # its code is loaded, its caches are warm
    names = list(asked)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            began = time.perf_counter()
            asked[name](number + 2)
            seconds[name].append(time.perf_counter() - began)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8000")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    seconds = measure(options.url.rstrip("/"), options.rounds, options.steps)
    plain = seconds["contract"]
    for name, taken in seconds.items():
        ratio = statistics.median(one / base for one, base in zip(taken, plain, strict=True))
        print(f"{name:10} {statistics.median(taken):7.3f} s   {ratio:.3f} of the contract's")


if __name__ == "__main__":
    main()
