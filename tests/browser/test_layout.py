"""What is to be pressed or read is in sight, on the height that a laptop's browser leaves too."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from tests.browser.visitor import GENERATE, QUICK, Visitor
from tests.server.pictures import file_of
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


@pytest.mark.parametrize(("width", "ratio"), [(1283, 1.0), (1287, 1.25), (1290, 1.5), (361, 1.75)])
def test_nothing_of_the_input_shines_through_the_result(
    visit: Visit, real_server: ServerProcess, width: int, ratio: float
) -> None:
    visitor = visit(
        real_server.url, viewport={"width": width, "height": 773}, device_scale_factor=ratio
    )
    page = visitor.page
    green, grey = (Image.new("RGB", (448, 320), colour) for colour in ("#00ff00", "#808080"))
    data = {"image": base64.b64encode(file_of(grey)).decode(), "seed": 7}
    answer = {"code": 0, "message": "success", "data": data}
    page.route(f"**{GENERATE}", lambda route: route.fulfill(json=answer))
    file = {"name": "green.png", "mimeType": "image/png", "buffer": file_of(green)}
    page.locator("#file").set_input_files(file)
    page.locator("#input-picture").wait_for()
    visitor.fill(prompt="a grey picture")
    visitor.generate()
    visitor.result()
    with Image.open(io.BytesIO(page.locator("#result-box").screenshot())) as shot:
        pixels = np.asarray(shot.convert("RGB"), dtype=int)
    right = pixels[:, pixels.shape[1] * 3 // 4 :]  # of the line between before and after
    assert (right[..., 1] - right[..., 0]).max() < 12
