"""What becomes the input: the last choice wins, and nothing that was typed or chosen is lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.browser.visitor import Visitor, expect
from tests.server.pictures import file_of, gradient
from tests.server.server_process import ServerProcess

Visit = Callable[..., Visitor]


@pytest.fixture
def visitor(visit: Visit, real_server: ServerProcess) -> Visitor:
    return visit(real_server.url)


EARLY = """
    const drop = async () => {
        const canvas = new OffscreenCanvas(40, 30);
        canvas.getContext("2d").fillRect(0, 0, 40, 30);
        const transfer = new DataTransfer();
        transfer.items.add(new File([await canvas.convertToBlob()], "early.png"));
        const event = {dataTransfer: transfer, bubbles: true, cancelable: true};
        document.body.dispatchEvent(new DragEvent("drop", event));
    };
    new MutationObserver((_, observer) => {
        const prompt = document.getElementById("prompt");
        if (!prompt || !sessionStorage.getItem("early")) return;
        observer.disconnect();
        prompt.value = "typed early";
        prompt.dispatchEvent(new Event("input", {bubbles: true}));
        drop();
    }).observe(document, {childList: true, subtree: true});
"""


def test_what_is_typed_and_dropped_just_after_opening_stays(
    visit: Visit, real_server: ServerProcess
) -> None:
    visitor = visit(real_server.url, script=EARLY)
    page = visitor.page
    visitor.sample()
    visitor.fill(prompt="before", steps="20")
    page.wait_for_timeout(500)
    page.evaluate("sessionStorage.setItem('early', 'yes')")
    page.reload()
    visitor.ready()
    expect(page.locator("#stage-note")).to_have_text("early.png · 40 × 30")
    expect(page.locator("#prompt")).to_have_value("typed early")
    expect(page.locator("#steps")).to_have_value("20")
    page.get_by_role("button", name="Back to house.png").click()
    expect(page.locator("#stage-note")).to_have_text("house.png · 384 × 384")


def test_the_picture_chosen_last_wins(visitor: Visitor) -> None:
    page = visitor.page
    page.locator('#samples img[src$="house.png"]').wait_for()
    held: list[Any] = []
    page.route("**/pictures/house.png", lambda route: held.append(route))
    house, star = (page.locator(f'#samples img[src$="{name}.png"]') for name in ("house", "star"))
    house.click()
    star.click()
    expect(page.locator("#stage-note")).to_contain_text("star.png")
    with page.expect_response("**/pictures/house.png"):
        held[0].continue_()
    page.wait_for_timeout(300)
    expect(page.locator("#stage-note")).to_contain_text("star.png")
    expect(page.locator("#prompt")).to_have_value("a pink heart")
    # A file after it, which is there at once.
    file = {"name": "b.png", "mimeType": "image/png", "buffer": file_of(gradient(60, 40))}
    page.locator("#file").set_input_files(file)
    expect(page.locator("#stage-note")).to_have_text("b.png · 60 × 40")
