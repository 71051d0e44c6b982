"""What a scene is called: one canonical caption, and many ways to say the same."""

from __future__ import annotations

import numpy as np

from pipelines.prompt.styles import PLACEHOLDER, STYLES, apply_style
from scripts.training.world.backgrounds import plain_tone
from scripts.training.world.scene import Scene, Thing

PLACES: dict[str, tuple[str, ...]] = {
    "sky": ("in the sky", "on a sky background", "in a clear sky", "against the sky"),
    "night": ("at night", "on a night background", "under a night sky", "in a starry night"),
    "grass": ("on a grass background", "on the grass", "on green grass", "in a grass field"),
    "desert": ("in the desert", "on a desert background", "on desert sand", "in a sandy desert"),
    "ocean": ("on an ocean background", "in the ocean", "on the ocean", "by the ocean"),
    "snow": ("in the snow", "on a snow background", "on snow", "in a snowy field"),
    "sunset": ("at sunset", "on a sunset background", "in the sunset", "against a sunset"),
    "plain": ("on a plain background", "on a simple background", "on an empty background"),
}
_CANONICAL: dict[str, str] = {
    name: f"on {'an' if name[0] in 'aeiou' else 'a'} {name} background" for name in PLACES
}
_OPENINGS = (
    "",
    "",
    "",
    "",
    "a drawing of ",
    "a picture of ",
    "an illustration of ",
    "an image of ",
)


def with_article(words: str) -> str:
    """`words` after "a" or "an"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def plain_caption(scene: Scene) -> str:
    """The canonical caption, without the style: "a red house next to a green tree on a grass
    background"."""
    names = [with_article(f"{thing.colour} {thing.kind}") for thing in scene.things]
    if len(names) == 2:
        words = f"{names[0]} next to {names[1]}"
        if abs(_offset(scene)[1]) > abs(_offset(scene)[0]):
            words = f"{names[0]} {'above' if _offset(scene)[1] > 0 else 'below'} {names[1]}"
    elif len(names) == 3:
        words = f"{names[0]}, {names[1]} and {names[2]}"
    else:
        words = names[0]
    return f"{words} {_CANONICAL[scene.background]}"


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One of many captions. Every thing's colour and kind is always named. A styled scene is
    written in its style's whole template, as a request would be, or in some of its words."""
    words = plain_caption(scene) if rng.random() < 0.2 else _varied(scene, rng)
    if scene.style is None:
        return str(_pick(_OPENINGS, rng)) + words
    if rng.random() < 0.65:
        return apply_style(scene.style, words).prompt
    return _partly_styled(scene.style, words, rng)


def dropped_caption(scene: Scene, rng: np.random.Generator) -> str:
    """The text of a row trained without its prompt: mostly empty, now and then what another style
    avoids, so that a negative prompt reads as "no prompt" and not as words never seen."""
    if rng.random() < 0.7:
        return ""
    others = [style for style in STYLES.values() if style.name != scene.style]
    return others[int(rng.integers(len(others)))].negative_prompt


def _varied(scene: Scene, rng: np.random.Generator) -> str:
    names = [_name(thing, rng, alone=len(scene.things) == 1) for thing in scene.things]
    if len(names) == 1:
        words = names[0]
    elif len(names) == 2:
        words = _related(scene, names, rng)
    else:
        words = f"{names[0]}, {names[1]} and {names[2]}"
    # People name the thing alone: an edit then leaves the background to the picture.
    if rng.random() < 0.18:
        return words
    place = _pick(PLACES[scene.background], rng)
    if scene.background == "plain":
        draw = rng.random()
        if draw < 0.15:
            return words
        if draw < 0.5:
            return f"{words} on a plain {plain_tone(scene)} background"
    if rng.random() < 0.12:
        return f"{words}, {scene.background} background"
    return f"{words} {place}"


def _name(thing: Thing, rng: np.random.Generator, *, alone: bool) -> str:
    words = f"{thing.colour} {thing.kind}"
    if alone and thing.size > 0.74:
        return str(
            _pick((f"a close-up of {with_article(words)}", f"a big {words}", f"a {words}"), rng)
        )
    if alone and thing.size < 0.46 and rng.random() < 0.6:
        return f"a small {words}"
    if rng.random() < 0.08:
        return words
    return with_article(words)


def _related(scene: Scene, names: list[str], rng: np.random.Generator) -> str:
    across, down = _offset(scene)
    if abs(across) >= abs(down):
        side = "left" if across > 0 else "right"
        relation = _pick(("next to", "next to", "beside", f"to the {side} of"), rng)
    else:
        relation = "above" if down > 0 else "below"
    if rng.random() < 0.2:
        return f"{names[0]} and {names[1]}"
    return f"{names[0]} {relation} {names[1]}"


def _offset(scene: Scene) -> tuple[float, float]:
    """Where the second thing is from the first, in pixels: (right, down)."""
    first, second = scene.things[0], scene.things[1]
    return (second.x - first.x) * scene.width, (second.y - first.y) * scene.height


def _partly_styled(name: str, words: str, rng: np.random.Generator) -> str:
    """The caption with some of the template's clauses, or only its opening."""
    head, _, tail = STYLES[name].prompt.partition(PLACEHOLDER)
    clauses = [clause.strip() for clause in tail.split(",") if clause.strip()]
    kept = [clause for clause in clauses if rng.random() < 0.6]
    draw = rng.random()
    if draw < 0.4:
        return ", ".join([head + words, *kept])
    if draw < 0.7:
        return f"{words}, {name.replace('-', ' ')} style"
    return ", ".join([words, head.removesuffix(" of ").strip(), *kept])


def _pick(choices: tuple[str, ...], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]
