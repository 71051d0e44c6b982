"""Style presets: what each of the contract's 17 names adds to a prompt and to its negative prompt.

A template names a medium, its technique, its light and its finish. It stays short, so that a prompt
of ordinary length and its template fit one CLIP context of 77 tokens, and it names no plain colour,
so that "a red cat" stays red whichever style it is asked in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

PLACEHOLDER = "{prompt}"


@dataclass(frozen=True)
class Style:
    """One preset.

    `prompt` is a template holding `{prompt}` exactly once; `negative_prompt` is what the style
    avoids, comma separated; `tile` asks for a picture whose opposite edges meet.
    """

    name: str
    prompt: str
    negative_prompt: str
    tile: bool = False


@dataclass(frozen=True)
class StyledPrompt:
    """The texts to encode: the prompt in its style, all to avoid, and whether edges must meet."""

    prompt: str
    negative_prompt: str
    tile: bool


_PRESETS = (
    Style(
        name="3d-model",
        prompt="a glossy 3d render of {prompt}, smooth rounded forms, soft studio shadow",
        negative_prompt="flat drawing, sketch, paper, film grain",
    ),
    Style(
        name="analog-film",
        prompt=(
            "a faded film snapshot of {prompt}, 35mm, warm washed tones, coarse grain, light leak"
        ),
        negative_prompt="digital render, neon, cartoon, crisp outline",
    ),
    Style(
        name="anime",
        prompt="an anime still of {prompt}, cel shading, bold outline, vivid light, clean finish",
        negative_prompt="photograph, film grain, dull tones, 3d render",
    ),
    Style(
        name="cinematic",
        prompt=(
            "a movie frame of {prompt}, widescreen bars, graded tones, dramatic light, dark edges"
        ),
        negative_prompt="cartoon, sketch, flat light, blank paper",
    ),
    Style(
        name="comic-book",
        prompt="a comic book panel of {prompt}, heavy ink lines, halftone dots, printed finish",
        negative_prompt="photograph, 3d render, blurred backdrop, smooth gradients",
    ),
    Style(
        name="digital-art",
        prompt="a digital painting of {prompt}, smooth gradients, luminous glow, polished finish",
        negative_prompt="photograph, halftone dots, film grain, pixel blocks",
    ),
    Style(
        name="enhance",
        prompt=(
            "a retouched photo of {prompt}, crisp detail, high contrast, rich tones, sharp focus"
        ),
        negative_prompt="washed tones, blurred, low contrast, sketch",
    ),
    Style(
        name="fantasy-art",
        prompt="a fantasy painting of {prompt}, glowing mist, magic sparkles, enchanted light",
        negative_prompt="photograph, flat drawing, modern, pixel blocks",
    ),
    Style(
        name="isometric",
        prompt="an isometric view of {prompt}, tilted tile platform, parallel angles, tidy diorama",
        negative_prompt="close-up, perspective, blurred backdrop, film grain",
    ),
    Style(
        name="line-art",
        prompt="line art of {prompt}, clean thin outlines, blank paper, no shading",
        negative_prompt="photograph, 3d render, filled shapes, film grain, gradients",
    ),
    Style(
        name="low-poly",
        prompt="a low poly model of {prompt}, triangular facets, flat shaded planes, angular light",
        negative_prompt="smooth rounded forms, sketch, outline, film grain",
    ),
    Style(
        name="modeling-compound",
        prompt=(
            "a play-dough clay model of {prompt}, soft rounded lumps, thumb prints, matte finish"
        ),
        negative_prompt="sharp edges, flat drawing, outline, glossy",
    ),
    Style(
        name="neon-punk",
        prompt="a neon punk scene of {prompt}, glowing tube edges, electric light, deep darkness",
        negative_prompt="daylight, washed tones, paper, clay",
    ),
    Style(
        name="origami",
        prompt="an origami figure of {prompt}, folded paper planes, sharp creases, paper shadow",
        negative_prompt="glossy, smooth rounded forms, outline, film grain",
    ),
    Style(
        name="photographic",
        prompt="a photograph of {prompt}, 50mm lens, soft natural light, blurred backdrop",
        negative_prompt="drawing, cartoon, outline, pixel blocks",
    ),
    Style(
        name="pixel-art",
        prompt="pixel art of {prompt}, big square blocks, retro game sprite, limited palette",
        negative_prompt="photograph, smooth gradients, blurred, sketch",
    ),
    Style(
        name="tile-texture",
        prompt=(
            "a seamless tile texture of {prompt}, repeating motif, top-down close-up, even light"
        ),
        negative_prompt="single subject, horizon, shadow, visible seam",
        tile=True,
    ),
)

STYLES: Mapping[str, Style] = MappingProxyType({style.name: style for style in _PRESETS})


def apply_style(preset: str | None, prompt: str, negative_prompt: str = "") -> StyledPrompt:
    """Write `prompt` in the style `preset`, or leave both prompts as they are where it is None.

    The caller's negative prompt comes first, then the style's. Braces in the prompt stay as typed.
    Raises ValueError, naming the preset, where it is not one of `STYLES`.
    """
    if preset is None:
        return StyledPrompt(prompt, negative_prompt, tile=False)
    style = STYLES.get(preset)
    if style is None:
        raise ValueError(f"unknown style preset {preset!r}; known: {', '.join(STYLES)}")
    avoided = [text for text in (negative_prompt.strip(), style.negative_prompt) if text]
    return StyledPrompt(
        prompt=style.prompt.replace(PLACEHOLDER, prompt),
        negative_prompt=", ".join(avoided),
        tile=style.tile,
    )
