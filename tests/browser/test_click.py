"""A click means what is there as it comes, however long it takes to carry it out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from tests.browser.visitor import QUICK, RUNNING, Visitor, expect, wait_until
from tests.server.pictures import file_of, gradient
from tests.server.server_process import ServerProcess

Visit = Callable[..., Visitor]
WHITE = Image.new("L", (8, 8), 255)


@pytest.fixture
def visitor(visit: Visit, real_server: ServerProcess) -> Visitor:
    return visit(real_server.url)


HOLD_BITMAPS = """() => {
    const held = new Promise((resolve) => { window.release = resolve; });
    const make = window.createImageBitmap;
    window.createImageBitmap = async (blob) => {
        await held;
        window.read = true;
        return make(blob);
    };
}"""
HOLD_MASKS = """() => {
    const held = new Promise((resolve) => { window.release = resolve; });
    const { arrayBuffer } = Response.prototype;
    Response.prototype.arrayBuffer = async function () {
        await held;
        return arrayBuffer.call(this);
    };
}"""
NO_MASKS = """() => {
    window.CompressionStream = function () { throw new Error("no room"); };
}"""


@pytest.mark.slow("browser")
def test_a_run_starts_from_what_was_there_at_its_click(visitor: Visitor) -> None:
    page = visitor.page
    bodies = visitor.bodies_sent()
    photo = file_of(gradient(90, 60))
    file = {"name": "photo.png", "mimeType": "image/png", "buffer": photo}
    page.locator("#file").set_input_files(file)
    visitor.fill(prompt="at the click", **QUICK)
    visitor.paint(0.5, 0.5)
    page.evaluate(HOLD_MASKS)  # as the mask of a large photo is long in the making
    visitor.generate()
    expect(page.locator("#cancel")).to_be_visible()
    page.locator("#show-input").click()
    page.locator("#remove-picture").click()
    visitor.fill(prompt="after it")
    page.evaluate("release()")
    page.locator("#show-result").click()
    visitor.result()
    (body,) = bodies
    assert photo in body
    assert b'name="mask"' in body
    assert b"at the click" in body
    assert b"after it" not in body
    assert visitor.complaints == []


@pytest.mark.slow("browser")
def test_a_mask_that_cannot_be_written_is_told(visitor: Visitor) -> None:
    page = visitor.page
    visitor.sample()
    visitor.paint(0.5, 0.5)
    page.evaluate(NO_MASKS)
    visitor.generate()
    told = "The mask cannot be written: no room"
    expect(page.locator("#form-error")).to_contain_text(told)
    expect(page.locator("#generate")).to_be_visible()
    page.locator("#show-grid").click()
    page.locator("#grid-x-values").fill("0.5")
    page.locator("#grid-go").click()
    expect(page.locator("#grid td .problem")).to_have_text(told)
    expect(page.locator("#grid-go")).to_be_visible()
    assert visitor.complaints == []


@pytest.mark.slow("browser")
def test_a_mask_that_a_grid_does_not_await_yet_is_told_once_it_does(visitor: Visitor) -> None:
    page = visitor.page
    visitor.sample()
    visitor.fill(steps="50", image_strength="0.1")
    visitor.paint(0.5, 0.5)
    page.locator("#show-grid").click()
    page.locator("#grid-x-values").fill("0.1")
    page.locator("#grid-go").click()
    page.locator("#grid td", has_text="/ 50").wait_for()
    held: list[Any] = []

    def hold_first(route: Any) -> None:
        if held:
            route.continue_()
        else:
            held.append(route)

    page.route("**/api/runs/*", hold_first)
    with page.expect_request("**/api/runs/*"):
        page.locator("#grid-stop").press("Enter")
    page.evaluate(NO_MASKS)
    page.locator("#grid-go").press("Enter")
    page.locator("#grid-stop").wait_for()
    held[0].continue_()
    told = "The mask cannot be written: no room"
    expect(page.locator("#grid td .problem")).to_have_text(told)
    assert visitor.complaints == []


@pytest.mark.slow("browser")
def test_a_mask_is_loaded_into_the_picture_that_it_was_chosen_for(visitor: Visitor) -> None:
    page = visitor.page
    visitor.sample("star")
    page.locator("#mask-open").click()
    page.evaluate(HOLD_BITMAPS)
    white = {"name": "mask.png", "mimeType": "image/png", "buffer": file_of(WHITE)}
    page.get_by_label("Mask file").set_input_files(white)
    buffer = file_of(gradient(90, 60))
    page.locator("#file").set_input_files(
        {"name": "b.png", "mimeType": "image/png", "buffer": buffer}
    )
    expect(page.locator("#stage-note")).to_contain_text("b.png")
    page.evaluate("release()")
    wait_until(page, "window.read")
    # What is loaded after it comes after it.
    bad = {"name": "bad.png", "mimeType": "image/png", "buffer": b"no picture"}
    page.get_by_label("Mask file").set_input_files(bad)
    said = "bad.png is no picture that this browser can read."
    expect(page.locator("#picture-note")).to_have_text(said)
    expect(page.locator("#mask-open")).to_have_text("Mask")


@pytest.mark.slow("browser")
def test_a_result_that_a_later_run_has_overtaken_is_in_the_strip_alone(visitor: Visitor) -> None:
    page = visitor.page
    visitor.sample()
    visitor.fill(**QUICK)
    page.evaluate(HOLD_BITMAPS)
    visitor.generate()
    expect(page.locator("#status")).to_have_text("Done")
    visitor.fill(steps="50", image_strength="0.1", seed="2")
    page.keyboard.press("Control+Enter")
    page.locator("#run-text", has_text="Step").wait_for()
    page.evaluate("release()")
    wait_until(page, f"{RUNNING}.length === 1")  # The first one is in hand.
    expect(page.locator("#strip li")).to_have_count(1)
    expect(page.locator("#strip .current")).to_have_count(0)
    expect(page.locator("#run-line")).to_be_visible()
    expect(page.locator("#result-actions")).to_be_hidden()
    page.locator("#use-seed", has_text="Seed 2").wait_for()
    expect(page.locator("#strip li")).to_have_count(2)
