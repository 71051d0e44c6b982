"""The demo model's words: what a click makes of a prompt, and how they are reached."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import pytest

from scripts.training.world.backgrounds import PLAIN_TONES
from scripts.training.world.captions import PLACES
from tests.browser.visitor import Visitor, expect
from tests.server.server_process import ServerProcess

Visit = Callable[..., Visitor]


@pytest.fixture
def visitor(visit: Visit, real_server: ServerProcess) -> Visitor:
    return visit(real_server.url)


def click(visitor: Visitor, word: str) -> None:
    visitor.page.locator("#chips").get_by_role("button", name=word, exact=True).click()


def test_they_write_prompts_that_are_english(visitor: Visitor) -> None:
    prompt = visitor.page.locator("#prompt")
    cases = {
        ("", "house", "orange", "red"): "a red house",
        ("", "red", "cat", "orange"): "an orange cat",
        ("", "house", "on the grass", "at night"): "a house at night",
        ("", "on snow", "house"): "a house on snow",
        ("a red house at night", "cat", "blue"): "a blue cat at night",
        ("Red house on grass", "blue"): "Blue house on grass",
        ("A Red House", "orange"): "An Orange House",
        ("the house", "red"): "the red house",
        ("two red houses", "cat", "blue"): "two blue cats",
        ("two houses", "red"): "two red houses",
        ("an old house", "orange"): "an old orange house",
        ("a red house, night", "on the grass"): "a red house, on the grass",
        ("a red house, oil painting", "on snow"): "a red house on snow, oil painting",
        ("a red house under a night sky, anime", "on snow"): "a red house on snow, anime",
        ("a house on green grass", "red", "at night"): "a red house at night",
        ("(a red house:1.2), best", "on snow"): "(a red house on snow:1.2), best",
        ("a blue-eyed cat", "red"): "a blue-eyed red cat",
        ("oil painting", "house"): "a house, oil painting",
    }
    for (before, *words), after in cases.items():
        prompt.fill(before)
        for word in words:
            click(visitor, word)
        expect(prompt).to_have_value(after)


def test_they_leave_words_of_other_languages_whole(visitor: Visitor) -> None:
    prompt = visitor.page.locator("#prompt")
    cases = {
        ("starý dům", "house"): "a house, starý dům",
        ("un catálogo", "house"): "a house, un catálogo",
        ("un catálogo", "red"): "a red, un catálogo",
        ("redé", "blue"): "a blue, redé",
        ("rede\N{COMBINING ACUTE ACCENT}", "blue"): "a blue, rede\N{COMBINING ACUTE ACCENT}",
        ("María red house", "orange"): "María orange house",
        ("a house in a světlý night", "on snow"): "a house on snow",
    }
    for (before, word), after in cases.items():
        prompt.fill(before)
        click(visitor, word)
        expect(prompt).to_have_value(after)


def test_they_know_the_places_that_the_model_was_taught(visitor: Visitor) -> None:
    """And take no colour of a place for that of the thing."""
    prompt = visitor.page.locator("#prompt")
    places = [f"on a plain {tone} background" for tone in PLAIN_TONES]
    for place in (*chain(*PLACES.values()), *places, "on a white background"):
        prompt.fill(f"a house {place}, anime")
        click(visitor, "orange")
        expect(prompt).to_have_value(f"an orange house {place}, anime")
        click(visitor, "at night")
        expect(prompt).to_have_value("an orange house at night, anime")
        prompt.fill(place)
        click(visitor, "house")
        expect(prompt).to_have_value(f"a house {place}")
    for place in (*PLACES, "plain white"):
        prompt.fill(f"a house, {place} background, anime")
        click(visitor, "orange")
        click(visitor, "on snow")
        expect(prompt).to_have_value("an orange house, on snow, anime")
    prompt.fill("a cat in the background")
    click(visitor, "on snow")
    expect(prompt).to_have_value("a cat in the background on snow")


def test_a_click_is_undone_as_what_was_typed_is(visitor: Visitor) -> None:
    prompt = visitor.page.locator("#prompt")
    prompt.press_sequentially("a red house")
    click(visitor, "blue")
    expect(prompt).to_have_value("a blue house")
    expect(visitor.page.locator("#chips").get_by_role("button", name="blue")).to_be_focused()
    prompt.press("Control+z")
    expect(prompt).to_have_value("a red house")
    prompt.press("Control+Shift+z")
    expect(prompt).to_have_value("a blue house")


def test_a_click_that_gives_its_button_no_focus_leaves_none_to_the_prompt(visitor: Visitor) -> None:
    """As in Safari: a phone would open its keyboard for the prompt."""
    prompt = visitor.page.locator("#prompt")
    button = visitor.page.locator("#chips").get_by_role("button", name="blue", exact=True)
    button.evaluate("button => button.click()")
    expect(prompt).to_have_value("a blue")
    expect(prompt).not_to_be_focused()


def test_a_mouse_reaches_all_of_them(visitor: Visitor) -> None:
    rows = visitor.page.locator("#chips p")
    for row in rows.all():
        expect(row.locator("button").last).to_be_in_viewport(ratio=1)
        assert row.evaluate("row => row.scrollWidth <= row.clientWidth")


def test_each_row_is_one_stop_of_tab(visitor: Visitor) -> None:
    page = visitor.page

    def focused(word: str) -> None:
        expect(page.get_by_role("button", name=word, exact=True)).to_be_focused()

    page.locator("#prompt").focus()
    page.keyboard.press("Tab")
    focused("red")
    page.keyboard.press("ArrowRight")
    focused("orange")
    page.keyboard.press("End")
    focused("black")
    page.keyboard.press("ArrowRight")
    focused("red")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    expect(page.locator("#prompt")).to_have_value("a black")
    page.keyboard.press("Tab")
    focused("circle")
    page.keyboard.press("Tab")
    focused("in the sky")
    page.keyboard.press("Tab")
    expect(page.locator("#negative_prompt")).to_be_focused()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    focused("black")


def test_what_is_said_of_the_model_stays_away_once_it_is_dismissed(visitor: Visitor) -> None:
    page = visitor.page
    expect(page.locator("#demo")).to_contain_text("one of 14 things")
    page.locator("#demo-close").press("Enter")
    expect(page.locator("#demo")).to_be_hidden()
    expect(page.locator("#prompt")).to_be_focused()
    page.reload()
    visitor.ready()
    expect(page.locator("#chips")).to_be_visible()
    expect(page.locator("#demo")).to_be_hidden()
