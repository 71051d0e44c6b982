"""What is to be pressed or read is in sight, on the height that a laptop's browser leaves too."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.browser.visitor import QUICK, Visitor
from tests.server.server_process import ServerProcess

Visit = Callable[..., Visitor]


@pytest.mark.slow("browser")
@pytest.mark.parametrize(("width", "height"), [(1366, 641), (1280, 600), (1440, 900)])
def test_all_of_the_stage_is_in_sight(
    visit: Visit, real_server: ServerProcess, width: int, height: int
) -> None:
    visitor = visit(real_server.url, viewport={"width": width, "height": height})
    page = visitor.page

    def in_sight(*names: str) -> None:
        page.wait_for_timeout(100)
        stage = page.locator("#stage").bounding_box()
        for name in names:
            box = page.locator(f"#{name}").bounding_box()
            assert stage["y"] <= box["y"], name
            assert box["y"] + box["height"] <= stage["y"] + stage["height"] + 0.5, name
            assert box["height"] > (100 if name in ("easel", "result-box") else 5), name
        tall = "document.documentElement.scrollHeight - innerHeight"
        assert page.evaluate(tall) == 0

    in_sight("drop", "samples")
    visitor.sample()
    in_sight("easel")
    visitor.fill(**QUICK)
    page.keyboard.press("Control+Enter")
    page.locator("#run-line").wait_for()
    in_sight("result-box", "bar", "run-text")
    visitor.result()
    in_sight("result-box", "download", "code")
    page.locator("#show-input").click()
    page.locator("#mask-open").click()
    in_sight("easel", "mask-tools")
