"""The words that the embedded model knows, and what those are told who meet it unprepared."""

from __future__ import annotations

from models.spec import EMBEDDED, PRODUCTION_MODEL

THINGS = (
    "circle",
    "square",
    "triangle",
    "star",
    "heart",
    "house",
    "tree",
    "flower",
    "fish",
    "boat",
    "car",
    "cat",
    "moon",
    "mountain",
)
COLOURS = (
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
    "white",
    "black",
)
BACKGROUNDS = ("sky", "night", "grass", "desert", "ocean", "snow", "sunset", "plain")


def demo_notice(model: str) -> str | None:
    """Return what to say of ``model`` where it is the embedded one, else None."""
    if model != EMBEDDED:
        return None
    return (
        f"this is a demo model: it knows {len(THINGS)} things ({', '.join(THINGS)}) in "
        f"{len(COLOURS)} colours ({', '.join(COLOURS)}) on {len(BACKGROUNDS)} backgrounds "
        f"({', '.join(BACKGROUNDS)}), and no other words, one thing a picture. For real pictures: "
        f"--model {PRODUCTION_MODEL} (some gigabytes, fetched once)"
    )
