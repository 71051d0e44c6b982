"""What is chosen or has the focus is told apart in the dark and in forced colours too."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.browser.visitor import QUICK, Visitor, expect
from tests.server.server_process import ServerProcess

Visit = Callable[..., Visitor]
LEAST_CONTRAST = 3.0
"""WCAG 1.4.11, for what tells a control's state."""

FORCED = ("backgroundColor", "borderTopColor", "borderTopWidth")
"""What forced colours leave of a look, beside the outline, which is the focus's."""


def luminance(colour: str) -> float:
    """Of a computed `rgb(...)`, as WCAG defines it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def style(control: Any, name: str) -> str:
    return str(control.evaluate("(element, name) => getComputedStyle(element)[name]", name))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_outlines_stand_out(visit: Visit, real_server: ServerProcess, scheme: str) -> None:
    page = visit(real_server.url, color_scheme=scheme).page
    tab = page.locator("#show-input")
    for _ in range(60):
        page.keyboard.press("Tab")
        if tab.evaluate("element => element === document.activeElement"):
            break
    expect(tab).to_be_focused()
    assert style(tab, "outlineStyle") == "solid"
    around = style(page.locator(".tabs"), "backgroundColor")
    assert contrast(style(tab, "outlineColor"), around) >= LEAST_CONTRAST
    chip = page.locator('input[name="size"]:checked + span')
    border = style(chip, "borderTopColor")
    for ground in (chip, page.locator("#form")):
        assert contrast(border, style(ground, "backgroundColor")) >= LEAST_CONTRAST


@pytest.mark.slow("browser")
def test_forced_colours_tell_what_is_chosen(visit: Visit, real_server: ServerProcess) -> None:
    visitor = visit(real_server.url)
    page = visitor.page
    for seed in ("1", "2"):
        visitor.sample()
        visitor.fill(seed=seed, **QUICK)
        visitor.generate()
        page.locator("#use-seed", has_text=f"Seed {seed}").wait_for()
        visitor.result()
        page.locator("#show-input").click()
        page.locator("#remove-picture").click()
    visitor.sample()
    page.locator("#mask-open").click()
    page.locator("#styles summary").click()
    page.emulate_media(forced_colors="active")
    pairs = {
        "tab": ("#show-input", "#show-grid"),
        "mask": ("#mask-open", "#change-picture"),
        "tool": ("#mask-brush", "#mask-hand"),
        "chip": ('[name="size"]:checked + span', '[name="size"]:not(:checked) + span'),
        "style": ("#style-choices :checked + *", "#style-choices :not(:checked) + img"),
        "result": ("#strip .current button", "#strip li:not(.current) button"),
    }
    for what, (chosen, other) in pairs.items():
        looks = [
            [style(page.locator(each).first, name) for name in FORCED] for each in (chosen, other)
        ]
        assert looks[0] != looks[1], what
    visitor.screenshot("forced")
    expect(page.locator("#show-input")).to_have_attribute("aria-pressed", "true")
