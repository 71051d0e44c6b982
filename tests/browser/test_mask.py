"""The mask lies where the hand was, at any display ratio, zoom and scroll, by mouse and finger."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from tests.browser.visitor import GENERATE, Visitor, expect, wait_until
from tests.server.pictures import file_of, gradient
from tests.server.server_process import ServerProcess

Visit = Callable[..., Visitor]
Bitmap = npt.NDArray[np.uint8]


def open_editor(visitor: Visitor, picture: Image.Image, **saving: Any) -> None:
    """Take a picture as the input and open the mask's tools."""
    file = {
        "name": "in.jpg",
        "mimeType": "image/jpeg",
        "buffer": file_of(picture, "JPEG", **saving),
    }
    visitor.page.locator("#file").set_input_files(file)
    visitor.page.locator("#input-picture").wait_for()
    visitor.page.locator("#mask-open").click()


def at(visitor: Visitor, x: float, y: float) -> tuple[float, float]:
    """Where a place of the picture, in fractions, is on the screen."""
    box = visitor.page.locator("#input-image").bounding_box()
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def drag(visitor: Visitor, *places: tuple[float, float]) -> None:
    mouse = visitor.page.mouse
    mouse.move(*at(visitor, *places[0]))
    mouse.down()
    for place in places[1:]:
        mouse.move(*at(visitor, *place), steps=4)
    mouse.up()


def saved(visitor: Visitor) -> Bitmap:
    """The mask as the page would send it."""
    with visitor.page.expect_download() as coming:
        visitor.page.locator("#mask-save").click()
    with Image.open(coming.value.path()) as file:
        assert file.mode == "L"
        return np.array(file)


def middle(mask: Bitmap) -> tuple[float, float]:
    """The centre of what is white, in fractions of width and height."""
    down, across = np.nonzero(mask)
    height, width = mask.shape
    return (across.mean() + 0.5) / width, (down.mean() + 0.5) / height


SLOW = pytest.mark.slow("browser")
DISPLAYS = [(1.75, 1.5)] + [
    pytest.param(ratio, zoom, marks=SLOW)
    for ratio in (1, 1.75, 2)
    for zoom in (1.0, 0.8, 1.5)
    if (ratio, zoom) != (1.75, 1.5)
]


@pytest.mark.parametrize(("ratio", "zoom"), DISPLAYS)
def test_a_stroke_lies_where_the_hand_was(
    visit: Visit, real_server: ServerProcess, ratio: float, zoom: float
) -> None:
    # Zooming the page makes its viewport smaller and its pixels larger.
    viewport = {"width": round(1280 / zoom), "height": round(900 / zoom)}
    visitor = visit(real_server.url, viewport=viewport, device_scale_factor=ratio * zoom)
    open_editor(visitor, gradient(1200, 500))
    for place in ((0.08, 0.15), (0.9, 0.8)):
        visitor.page.mouse.click(*at(visitor, *place))
        mask = saved(visitor)
        assert mask.shape == (500, 1200)
        assert set(np.unique(mask)) == {0, 255}
        assert middle(mask) == pytest.approx(place, abs=0.004)
        visitor.page.locator("#mask-undo").click()


@pytest.mark.slow("browser")
def test_an_upright_mask_for_a_picture_that_lies_on_its_side(
    visit: Visit, real_server: ServerProcess
) -> None:
    visitor = visit(real_server.url)
    exif = Image.Exif()
    exif[0x0112] = 6
    open_editor(visitor, gradient(640, 400), exif=exif)
    expect(visitor.page.locator("#stage-note")).to_have_text("in.jpg · 400 × 640")
    visitor.page.mouse.click(*at(visitor, 0.3, 0.9))
    mask = saved(visitor)
    assert mask.shape == (640, 400)
    assert middle(mask) == pytest.approx((0.3, 0.9), abs=0.005)


@pytest.mark.slow("browser")
def test_the_editors_keys_and_buttons(visit: Visit, real_server: ServerProcess) -> None:
    visitor = visit(real_server.url)
    page = visitor.page
    open_editor(visitor, gradient(600, 600))
    drag(visitor, (0.2, 0.5), (0.8, 0.5))
    line = saved(visitor)
    brush = np.nonzero(line[:, 300])[0]
    assert len(brush) == pytest.approx(75, abs=1)  # an eighth of the shorter side
    # A stroke that begins beside the picture and ends there.
    drag(visitor, (0.5, -0.03), (0.5, 1.03))
    crossed = saved(visitor)
    assert crossed[:, 300].all()
    page.locator("#input-picture").focus()
    page.keyboard.press("e")
    drag(visitor, (0.0, 0.5), (1.0, 0.5))
    assert not saved(visitor)[300].any()
    page.locator("#input-picture").focus()
    page.keyboard.press("Control+z")
    assert (saved(visitor) == crossed).all()
    page.locator("#input-picture").focus()
    page.keyboard.press("Control+z")
    assert (saved(visitor) == line).all()
    page.locator("#mask-redo").click()
    assert (saved(visitor) == crossed).all()
    page.locator("#mask-invert").click()
    assert (saved(visitor) == 255 - crossed).all()
    page.locator("#mask-clear").click()
    assert not saved(visitor).any()
    page.locator("#mask-undo").click()
    assert (saved(visitor) == 255 - crossed).all()
    size = page.locator("#mask-size-text")
    before = int(size.inner_text().split()[0])
    page.locator("#input-picture").focus()
    page.keyboard.press("]")
    assert int(size.inner_text().split()[0]) > before
    # Typed into the prompt they are letters.
    page.locator("#prompt").fill("")
    page.locator("#prompt").press_sequentially("be]")
    expect(page.locator("#prompt")).to_have_value("be]")
    page.locator("#input-picture").focus()
    page.keyboard.press("Tab")
    expect(page.locator("#input-picture")).not_to_be_focused()


@pytest.mark.slow("browser")
def test_zoomed_strokes_and_the_wheel(visit: Visit, real_server: ServerProcess) -> None:
    visitor = visit(real_server.url)
    page = visitor.page
    open_editor(visitor, gradient(600, 600))
    page.mouse.move(*at(visitor, 0.25, 0.25))
    page.keyboard.down("Alt")
    page.mouse.wheel(0, -400)
    page.keyboard.up("Alt")
    wait_until(page, "document.querySelector('#input-image').getBoundingClientRect().width > 1000")
    page.mouse.click(*at(visitor, 0.3, 0.22))
    assert middle(saved(visitor)) == pytest.approx((0.3, 0.22), abs=0.004)
    before = page.locator("#mask-size-text").inner_text()
    desk = page.locator("#input-picture").bounding_box()
    page.mouse.move(desk["x"] + 200, desk["y"] + 200)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -100)
    page.keyboard.up("Control")
    expect(page.locator("#mask-size-text")).not_to_have_text(before)
    assert page.evaluate("visualViewport.scale") == 1


def test_a_finger_paints_and_the_page_stays(visit: Visit, real_server: ServerProcess) -> None:
    visitor = visit(
        real_server.url,
        viewport={"width": 390, "height": 800},
        has_touch=True,
        is_mobile=True,
        device_scale_factor=2,
    )
    page = visitor.page
    open_editor(visitor, gradient(600, 600))
    page.locator("#input-picture").scroll_into_view_if_needed()
    scrolled = page.evaluate("scrollY")
    touch = visitor.context.new_cdp_session(page)
    places = [(0.3, 0.2 + 0.1 * step) for step in range(7)]
    for kind, place in (("touchStart", places[0]), *(("touchMove", p) for p in places[1:])):
        x, y = at(visitor, *place)
        point = {"x": x, "y": y}
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [point]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert page.evaluate("scrollY") == scrolled
    mask = saved(visitor)
    assert mask[int(0.5 * 600), int(0.3 * 600)] == 255
    assert middle(mask) == pytest.approx((0.3, 0.5), abs=0.02)


def test_what_is_painted_is_sent_and_kept(visit: Visit, real_server: ServerProcess) -> None:
    visitor = visit(real_server.url)
    page = visitor.page
    open_editor(visitor, gradient(600, 600))
    page.mouse.click(*at(visitor, 0.7, 0.3))
    mask = saved(visitor)
    page.wait_for_timeout(900)
    page.reload()
    visitor.ready()
    expect(page.locator("#mask-open")).to_have_text("Mask ●")
    bodies: list[bytes] = []

    def answer(route: Any) -> None:
        bodies.append(route.request.post_data_buffer)
        route.fulfill(json={"code": -1, "message": "prompt: enough seen", "data": None}, status=400)

    page.route(f"**{GENERATE}", answer)
    visitor.fill(prompt="a red house")
    visitor.generate()
    page.locator("#prompt-problem", has_text="enough seen").wait_for()
    found = re.search(
        rb'name="mask"; filename="mask.png".*?\r\n\r\n(\x89PNG.*?IEND....)', bodies[0], re.S
    )
    assert found is not None
    with Image.open(io.BytesIO(found[1])) as sent:
        assert (np.array(sent) == mask).all()


@pytest.mark.slow("browser")
def test_a_picture_of_another_shape_clears_the_mask(
    visit: Visit, real_server: ServerProcess
) -> None:
    visitor = visit(real_server.url)
    open_editor(visitor, gradient(600, 600))
    visitor.page.mouse.click(*at(visitor, 0.7, 0.3))
    expect(visitor.page.locator("#mask-open")).to_have_text("Mask ●")
    for picture, shown in ((gradient(300, 300), "Mask ●"), (gradient(300, 200), "Mask")):
        file = {"name": "b.png", "mimeType": "image/png", "buffer": file_of(picture)}
        visitor.page.locator("#file").set_input_files(file)
        size = f"b.png · {picture.width} × {picture.height}"
        visitor.page.locator("#stage-note", has_text=size).wait_for()
        expect(visitor.page.locator("#mask-open")).to_have_text(shown)
