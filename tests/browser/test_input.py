"""What becomes the input: the last choice wins, and nothing that was typed or chosen is lost."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.browser.visitor import GENERATE, QUICK, Visitor, expect, wait_until
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
    expect(page.locator("#prompt")).to_have_value("a pink star")
    # A file after it, which is there at once.
    file = {"name": "b.png", "mimeType": "image/png", "buffer": file_of(gradient(60, 40))}
    page.locator("#file").set_input_files(file)
    expect(page.locator("#stage-note")).to_have_text("b.png · 60 × 40")


@pytest.mark.slow("browser")
def test_what_had_no_mask_comes_back_without_one(visitor: Visitor) -> None:
    page = visitor.page
    mask = page.locator("#mask-open")
    visitor.sample("star")
    visitor.fill(**QUICK)
    visitor.generate()
    visitor.result()
    # "Use its settings" on the same picture; it can be undone.
    visitor.paint(0.5, 0.5)
    page.locator("#show-result").click()
    page.locator("#use-settings").click()
    expect(mask).to_have_text("Mask")
    page.locator("#show-input").click()
    page.locator("#mask-undo").click()
    expect(mask).to_have_text("Mask ●")
    # On another one of the same shape, which a file keeps the mask for.
    buffer = file_of(gradient(384, 384))
    page.locator("#file").set_input_files(
        {"name": "b.png", "mimeType": "image/png", "buffer": buffer}
    )
    expect(page.locator("#stage-note")).to_contain_text("b.png")
    expect(mask).to_have_text("Mask ●")
    page.locator("#show-result").click()
    page.locator("#use-settings").click()
    expect(page.locator("#stage-note")).to_contain_text("star.png")
    expect(mask).to_have_text("Mask")
    # "Back to ...", to the one with the mask and from it.
    page.locator("#show-input").click()
    page.locator("#undo-picture", has_text="b.png").click()
    expect(mask).to_have_text("Mask ●")
    page.locator("#undo-picture", has_text="star.png").click()
    expect(page.locator("#stage-note")).to_contain_text("star.png")
    expect(mask).to_have_text("Mask")


@pytest.mark.slow("browser")
def test_run_again_has_the_mask_of_its_run(visitor: Visitor) -> None:
    page = visitor.page
    bodies: list[bytes] = []

    def busy(route: Any) -> None:
        bodies.append(route.request.post_data_buffer)
        error = {"code": -1, "message": "the server is busy", "data": None}
        route.fulfill(status=503, headers={"Retry-After": "999"}, json=error)

    page.route(f"**{GENERATE}", busy)
    visitor.sample("star")
    visitor.generate()
    again = page.get_by_role("button", name="Run again with the same seed")
    again.wait_for()
    visitor.paint(0.5, 0.5)
    again.click()
    expect(page.locator("#mask-open")).to_have_text("Mask")
    again.wait_for()
    wait_until(page, "document.getElementById('cancel').hidden")
    assert len(bodies) == 2
    assert [b'name="mask"' in body for body in bodies] == [False, False]


def test_a_start_from_noise_loses_no_strength(visitor: Visitor) -> None:
    page = visitor.page
    strength = page.locator("#image_strength")
    file = {"name": "photo.png", "mimeType": "image/png", "buffer": file_of(gradient(60, 40))}
    page.locator("#file").set_input_files(file)
    expect(page.locator("#stage-note")).to_contain_text("photo.png")
    visitor.fill(image_strength="0.6")

    def noise() -> None:
        page.locator("#remove-picture").click()
        page.locator("#noise").click()
        expect(strength).to_have_value("0")

    noise()
    page.get_by_role("button", name="Back to photo.png").click()
    expect(strength).to_have_value("0.6")
    # Over a reload, and where settings go back and forth meanwhile.
    noise()
    page.wait_for_timeout(500)
    page.reload()
    visitor.ready()
    expect(strength).to_have_value("0")
    page.locator("#reset").click()
    page.locator("#undo-settings").click()
    expect(strength).to_have_value("0")
    page.locator("#remove-picture").click()
    expect(strength).to_have_value("0.6")


@pytest.mark.slow("browser")
def test_a_form_that_was_kept_with_the_noises_strength_has_the_standard_one(
    visitor: Visitor,
) -> None:
    page = visitor.page
    strength = page.locator("#image_strength")
    standard = strength.input_value()
    visitor.fill(prompt="kept")
    page.locator("#noise").click()
    expect(strength).to_have_value("0")
    kept = "JSON.parse(localStorage.getItem('img2img.form'))"
    wait_until(page, f"{kept}?.values.prompt === 'kept'")
    page.wait_for_timeout(500)
    page.evaluate(  # As version 1 kept it.
        f"""() => {{
            const kept = {kept};
            const values = {{...kept.values, image_strength: "0"}};
            for (const storage of [localStorage, sessionStorage]) {{
                storage.setItem("img2img.form", JSON.stringify({{...kept, version: 1, values}}));
            }}
        }}"""
    )
    for _ in range(2):
        page.reload()
        visitor.ready()
        expect(strength).to_have_value("0")
        expect(page.locator("#prompt")).to_have_value("kept")
        wait_until(page, f"{kept}.version === 2")
    page.locator("#remove-picture").click()
    expect(strength).to_have_value(standard)
    # With a picture it was someone's own choice, and is so now.
    visitor.sample()
    visitor.fill(image_strength="0")
    wait_until(page, f"{kept}.values.image_strength === '0'")
    page.reload()
    visitor.ready()
    page.locator("#remove-picture").click()
    page.locator("#noise").click()
    wait_until(page, f"{kept}.values.image_strength === '0'")
    page.reload()
    visitor.ready()
    page.locator("#remove-picture").click()
    expect(strength).to_have_value("0")


def test_from_noise_the_strength_is_not_there_to_be_typed(visitor: Visitor) -> None:
    page = visitor.page
    strength = page.locator("#image_strength")
    slider = page.get_by_role("slider", name="Image strength, slider")
    visitor.fill(image_strength="")
    page.locator("#noise").click()
    for control in (strength, slider):
        expect(control).to_be_disabled()
    # What settings bring is set aside, blank too.
    page.locator("#reset").click()
    page.locator("#undo-settings").click()
    expect(strength).to_have_value("0")
    page.locator("#remove-picture").click()
    for control in (strength, slider):
        expect(control).to_be_enabled()
    expect(strength).to_have_value("")


def test_a_removed_picture_comes_back_with_its_own_size(visitor: Visitor) -> None:
    page = visitor.page
    visitor.sample()
    own = page.locator('input[name="size"][value="picture"]')
    own.check()
    page.locator("#remove-picture").click()
    expect(page.locator('input[name="size"][value="native"]')).to_be_checked()
    page.wait_for_timeout(500)
    page.locator("#undo-picture").click()
    expect(own).to_be_checked()
    expect(page.locator("#cost")).to_contain_text("384 × 384")
    page.locator("#remove-picture").click()
    page.wait_for_timeout(500)
    page.reload()
    visitor.ready()
    visitor.sample()
    expect(own).to_be_checked()


def test_what_was_wrong_is_not_told_any_more_once_it_is_right(visitor: Visitor) -> None:
    page = visitor.page
    visitor.fill(prompt="a red house")
    visitor.generate()
    said = page.locator("#form-error")
    expect(said).to_have_text("Not sent: there is no picture to start from.")
    visitor.sample()
    expect(said).to_have_text("")
    visitor.fill(steps="5")
    visitor.generate()
    expect(said).to_have_text("Not sent: see the marked fields.")
    marked = "Not sent: see the marked fields."
    # Neither another picture nor another field mends it.
    page.locator("#remove-picture").click()
    visitor.sample("star")
    expect(page.locator("#stage-note")).to_contain_text("star.png")
    visitor.fill(prompt="a green house")
    expect(page.locator("#steps")).to_have_attribute("aria-invalid", "true")
    expect(said).to_have_text(marked)
    page.locator("#reset").click()
    expect(said).to_have_text("")
    # Both: one after the other.
    page.locator("#remove-picture").click()
    visitor.fill(steps="5")
    visitor.generate()
    expect(said).to_have_text("Not sent: there is no picture to start from.")
    visitor.fill(prompt="a red house")
    expect(said).to_have_text("Not sent: there is no picture to start from.")
    visitor.sample()
    expect(said).to_have_text(marked)
    visitor.fill(steps="20")
    expect(said).to_have_text("")


def refuse(visitor: Visitor, message: str) -> None:
    error = {"code": -1, "message": message, "data": None}
    visitor.page.route(f"**{GENERATE}", lambda route: route.fulfill(status=400, json=error))


@pytest.mark.slow("browser")
@pytest.mark.parametrize(("field", "name"), [("init_image", "picture"), ("mask", "mask")])
def test_a_complaint_about_the_input_is_seen_beside_an_earlier_result(
    visitor: Visitor, field: str, name: str
) -> None:
    page = visitor.page
    visitor.sample()
    visitor.fill(**QUICK)
    visitor.generate()
    visitor.result()
    refuse(visitor, f"{field}: is no picture")
    visitor.generate()
    note = page.locator("#picture-note", has_text=f"The {name} is no picture")
    expect(note).to_be_visible()
    page.wait_for_timeout(500)
    expect(note).to_be_visible()
    # Another complaint leaves the earlier result in its place.
    page.unroute(f"**{GENERATE}")
    refuse(visitor, "steps: is too much")
    visitor.generate()
    expect(page.locator("#steps-problem")).to_have_text("is too much")
    expect(page.locator("#result-actions")).to_be_visible()


def test_a_picture_that_is_damaged_is_not_called_readable(visitor: Visitor) -> None:
    buffer = file_of(gradient(60, 40))
    file = {"name": "cut.png", "mimeType": "image/png", "buffer": buffer[:30]}
    visitor.page.locator("#file").set_input_files(file)
    note = visitor.page.locator("#picture-note", has_text="It is sent all the same.")
    expect(note).to_contain_text("cannot show this picture: it may be damaged")


def take_tiff(visitor: Visitor, name: str) -> None:
    buffer = file_of(gradient(600, 300), "TIFF")
    file = {"name": name, "mimeType": "image/tiff", "buffer": buffer}
    visitor.page.locator("#file").set_input_files(file)
    expect(visitor.page.locator("#stage-note")).to_have_text(name)


@pytest.mark.slow("browser")
def test_a_picture_of_unknown_shape_keeps_it(visitor: Visitor) -> None:
    page = visitor.page
    take_tiff(visitor, "a.tiff")
    expect(page.locator("#picture-note")).to_contain_text("TIFF pictures, but the server can")
    chip = page.locator("#sizes label", has_text="as the picture").locator("input")
    expect(chip).to_be_checked()
    expect(page.locator("#cost")).to_be_empty()
    bodies = visitor.bodies_sent()
    visitor.fill(prompt="a red house", **QUICK)
    visitor.generate()
    visitor.result()
    assert not re.search(rb'name="(width|height)"', bodies[0])
    expect(page.locator("#after")).to_have_js_property("naturalWidth", 640)
    expect(page.locator("#after")).to_have_js_property("naturalHeight", 320)
    box = page.locator("#result-box").bounding_box()
    assert box["width"] / box["height"] == pytest.approx(2, abs=0.02)
    page.wait_for_timeout(500)
    page.reload()
    visitor.ready()
    expect(chip).to_be_checked()
    # Sizes that are chosen stay, over a reload and with another picture.
    page.locator('input[name="size"][value="larger"]').check()
    chosen = page.locator("#cost").inner_text()
    page.wait_for_timeout(500)
    page.reload()
    visitor.ready()
    take_tiff(visitor, "b.tiff")
    expect(page.locator('input[name="size"][value="larger"]')).to_be_checked()
    expect(page.locator("#cost")).to_have_text(chosen)
    page.locator('input[name="size"][value="custom"]').check()
    visitor.fill(width="640", height="384")
    take_tiff(visitor, "c.tiff")
    expect(page.locator("#cost")).to_contain_text("640 × 384")
    # A picture that is shown has chips of its own again.
    page.locator('input[name="size"][value="server"]').check()
    page.locator("#remove-picture").click()
    visitor.sample("star")
    expect(page.locator('input[name="size"][value="native"]')).to_be_checked()
    expect(page.locator("#cost")).to_contain_text("320 × 320")
