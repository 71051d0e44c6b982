"""The page on a phone, or at 200 % zoom: what is needed together is in sight together."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.browser.visitor import Visitor, expect, wait_until
from tests.server.server_process import ServerProcess

Visit = Callable[..., Visitor]
COVERED = """[...document.querySelectorAll('#mask-tools button, #mask-size')].filter((tool) => {
    const { x, y, width, height } = tool.getBoundingClientRect();
    const seen = document.elementFromPoint(x + width / 2, y + height / 2);
    return seen?.closest('button, input') !== tool;
})"""
"""The tools of the mask that a finger cannot reach, as JavaScript."""
PICTURE = "document.getElementById('easel').getBoundingClientRect()"


@pytest.mark.parametrize(("width", "height"), [(360, 740), (640, 400)])
def test_the_masks_tools_are_in_reach_beside_the_picture(
    visit: Visit, real_server: ServerProcess, width: int, height: int
) -> None:
    visitor = visit(
        real_server.url,
        viewport={"width": width, "height": height},
        has_touch=True,
        is_mobile=True,
    )
    page = visitor.page
    visitor.sample("cat")
    page.locator("#mask-open").click()
    page.locator("#mask-tools").wait_for()
    wait_until(page, f"{COVERED}.length === 0")
    wait_until(
        page, f"{PICTURE}.bottom <= document.getElementById('go').getBoundingClientRect().top"
    )
    wait_until(
        page,
        f"{PICTURE}.top >= document.getElementById('mask-tools').getBoundingClientRect().bottom",
    )
    # Further down the page they stay in reach while any of the picture is in sight.
    page.evaluate(f"scrollBy(0, {PICTURE}.height / 2)")
    wait_until(page, f"{COVERED}.length === 0")
    expect(page.locator("#input-picture")).to_be_in_viewport()


def test_a_strip_beside_the_picture_is_left_for_scrolling(
    visit: Visit, real_server: ServerProcess
) -> None:
    visitor = visit(
        real_server.url, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True
    )
    page = visitor.page
    visitor.sample("cat")
    page.locator("#mask-open").click()
    page.locator("#mask-tools").wait_for()
    middle = f"({PICTURE}.top + {PICTURE}.height / 2)"
    for x, painted in ((180, "true"), (24, "false"), (336, "false")):
        at = f"document.elementFromPoint({x}, {middle})"
        wait_until(page, f"Boolean({at}.closest('#input-picture.editing')) === {painted}")


def test_no_keyboard_opens_as_the_banner_is_dismissed(
    visit: Visit, real_server: ServerProcess
) -> None:
    visitor = visit(
        real_server.url, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True
    )
    page = visitor.page
    page.locator("#demo-close").tap()
    expect(page.locator("#demo")).to_be_hidden()
    expect(page.locator("#prompt")).not_to_be_focused()
