"""Parsers of settings: words, lists, LoRAs, sizes, addresses."""

from __future__ import annotations

import ipaddress
import json
import math

from pipelines.request import MAX_SIDE, MIN_SIDE, SIDE_MULTIPLE

SIDES = range(MIN_SIDE, MAX_SIDE + 1, SIDE_MULTIPLE)
"""The sides that the form takes, in pixels."""


def choice_word(value: object) -> object:
    """A word in lower case. What YAML and the environment also call on and off is those two."""
    word = str(value).lower()
    return {"true": "on", "1": "on", "false": "off", "0": "off"}.get(word, word)


def split_list(value: object) -> object:
    """`"a, b"` or `'["a", "b"]'` as a list; anything that is not a string, unchanged."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith("["):
        try:
            return json.loads(text)
        except ValueError:
            raise ValueError("starts with [ but is not a JSON list") from None
    return [item.strip() for item in text.split(",") if item.strip()]


def split_lora(text: str) -> tuple[str, float]:
    """`"a.safetensors:0.8"` as the file and its weight, which is 1 if left out.

    Raises ValueError.
    """
    path, colon, weight = text.rpartition(":")
    if not colon or "/" in weight or "\\" in weight or weight.endswith(".safetensors"):
        return text, 1.0
    try:
        value = float(weight)
    except ValueError:
        value = math.nan
    if not path or not math.isfinite(value):
        raise ValueError(f"{weight!r} behind the last colon is no weight, such as 0.8")
    return path, value


def split_size(text: str) -> tuple[int, int]:
    """`"512x768"` as width and height. Raises ValueError where the form would refuse them."""
    width, _, height = text.lower().partition("x")
    try:
        size = int(width), int(height)
    except ValueError:
        raise ValueError(f"{text!r} is no size, such as 512x768") from None
    if any(side not in SIDES for side in size):
        raise ValueError(
            f"{text!r}: a side is a multiple of {SIDES.step}, {SIDES[0]} to {SIDES[-1]}"
        )
    return size


def is_loopback(host: str) -> bool:
    """Return whether `host` is only reached from this machine. A name other than localhost is
    not."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
