"""The grid: A1111's value syntax, count before the click, cells that survive, one PNG."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from tests.browser.visitor import GENERATE, QUICK, Visitor, expect, wait_until
from tests.server.server_process import ServerProcess

Visit = Callable[..., Visitor]


@pytest.fixture
def visitor(visit: Visit, real_server: ServerProcess) -> Visitor:
    visitor = visit(real_server.url)
    visitor.sample()
    visitor.fill(**QUICK)
    visitor.page.locator("#show-grid").click()
    return visitor


def test_values_have_a1111s_syntax(visitor: Visitor) -> None:
    values = {
        ("steps", "11-15"): ["11", "12", "13", "14", "15"],
        ("steps", "11-15 (+2)"): ["11", "13", "15"],
        ("steps", "30-10 (-10)"): ["30", "20", "10"],
        ("steps", "10-20 [3], 12"): ["10", "15", "20", "12"],
        ("image_strength", "0.2-0.8 [4]"): ["0.2", "0.4", "0.6", "0.8"],
        ("image_strength", "0-1 (+0.25), , .1"): ["0", "0.25", "0.5", "0.75", "1", "0.1"],
        ("sampler", 'ddim, "K_EULER",, ddim '): ["DDIM", "K_EULER"],
        ("style_preset", "none, anime"): ["", "anime"],
        ("seed", "-1, 7"): ["-1", "7"],
        ("steps", "5"): "5 is not from 10 to 50",
        ("steps", "ten"): "ten is neither a number nor a range",
        ("sampler", "DPM++"): "DPM++ is none of",
        ("steps", " , "): "has no values",
    }
    for (name, text), expected in values.items():
        found = visitor.page.evaluate(
            """async ([name, text]) => {
                const at = (file) => new URL(`static/page/${file}.js`, document.baseURI);
                const fields = await (await import(at("schema"))).readFields();
                return (await import(at("axis"))).axisValues(fields.get(name), text);
            }""",
            [name, text],
        )
        if isinstance(expected, list):
            assert found == {"values": expected}, text
        else:
            assert expected in found["problem"], text


def test_the_axes_are_there_after_a_reload(visitor: Visitor) -> None:
    page = visitor.page
    page.locator("#grid-x").select_option("cfg_scale")
    page.locator("#grid-x-values").fill("2, 5, 9")
    page.locator("#grid-y").select_option("seed")
    page.locator("#grid-y-values").fill("11, 22")
    page.wait_for_timeout(500)
    page.reload()
    visitor.ready()
    page.locator("#show-grid").click()
    expect(page.locator("#grid-go")).to_have_text("Make 6 pictures")
    for axis, name, values in (("x", "cfg_scale", "2, 5, 9"), ("y", "seed", "11, 22")):
        expect(page.locator(f"#grid-{axis}")).to_have_value(name)
        expect(page.locator(f"#grid-{axis}-values")).to_have_value(values)


def test_from_noise_no_strength_is_offered_or_sent(visitor: Visitor) -> None:
    page = visitor.page
    bodies = visitor.bodies_sent()
    page.locator("#show-input").click()
    page.locator("#remove-picture").click()
    page.locator("#noise").click()
    page.locator("#picture-note", has_text="Starts from noise").wait_for()
    page.locator("#show-grid").click()
    expect(page.locator("#grid-x")).to_have_value("cfg_scale")
    assert page.locator('#grid-x option[value="image_strength"]').is_disabled()
    page.locator("#grid-x-values").fill("3, 7")
    page.locator("#grid-go").click()
    page.locator("#grid-save").wait_for(timeout=60_000)
    assert len(bodies) == 2
    assert all(re.search(rb'image_strength"\r\n\r\n0\r\n', body) for body in bodies)
    # Nor by a job of other values, as of a grid whose axes were chosen before.
    values = page.evaluate(
        """async () => {
            const { Making } = await import(new URL("static/page/making.js", document.baseURI));
            const form = {request: (values) => values};
            const making = {page: {form}};
            const from = {input: {kind: "noise", blob: null}};
            return Making.prototype.job.call(making, 1, from, {image_strength: "0.8"}).values;
        }"""
    )
    assert values == {"image_strength": "0"}


COUNT_URLS = """() => {
    window.urls = new Set();
    const {createObjectURL, revokeObjectURL} = URL;
    URL.createObjectURL = (blob) => {
        const url = createObjectURL.call(URL, blob);
        urls.add(url);
        return url;
    };
    URL.revokeObjectURL = (url) => {
        urls.delete(url);
        revokeObjectURL.call(URL, url);
    };
}"""


def test_a_grid_is_made_kept_and_saved(visitor: Visitor) -> None:
    page = visitor.page
    page.evaluate(COUNT_URLS)
    page.locator("#grid-x").select_option("image_strength")
    page.locator("#grid-x-values").fill("0.6-0.8 [2]")
    page.locator("#grid-y").select_option("seed")
    page.locator("#grid-y-values").fill("5, 6")
    expect(page.locator("#grid-go")).to_have_text("Make 4 pictures")
    # One of them fails, and only that one is made again.
    failed: list[str] = []

    def fail_once(route: Any) -> None:
        body = route.request.post_data_buffer
        seed = re.search(rb'name="seed"\r\n\r\n(\d+)', body)
        assert seed is not None
        if not failed and seed[1] == b"6":
            failed.append("6")
            error = {"code": -1, "message": "steps: no luck", "data": None}
            route.fulfill(status=400, json=error)
        else:
            route.continue_()

    page.route(f"**{GENERATE}", fail_once)
    page.locator("#grid-go").click()
    page.locator("#grid-said", has_text="3 of 4 made").wait_for()
    page.locator("#grid td .problem", has_text="no luck").wait_for()
    page.get_by_role("button", name="Make the missing 1").press("Enter")
    page.locator("#grid-said", has_text="4 of 4 made").wait_for()
    visitor.screenshot("grid")
    # The strip's own are left, those of the cells are given back.
    wait_until(page, "urls.size === 4")
    with page.expect_download() as coming:
        page.locator("#grid-save").click()
    with Image.open(coming.value.path()) as picture:
        assert picture.width > 2 * 320
        assert picture.height > 2 * 320
    page.get_by_role("button", name="Show Image strength 0.8, Seed 6").click()
    page.locator("#use-seed", has_text="Seed 6").wait_for()
    page.reload()
    visitor.ready()
    expect(page.locator("#strip li")).to_have_count(4)


@pytest.mark.slow("browser")
def test_a_cancelled_grid_keeps_what_is_made(visitor: Visitor) -> None:
    page = visitor.page
    page.locator("#grid-x").select_option("steps")
    page.locator("#grid-x-values").fill("10, 50")
    visitor.fill(image_strength="0")
    page.locator("#grid-go").click()
    page.locator("#grid-said", has_text="1 of 2 made").wait_for()
    page.locator("#grid-stop").press("Enter")
    page.get_by_role("button", name="Make the missing 1").wait_for()
    expect(page.locator("#strip li")).to_have_count(1)


@pytest.mark.slow("browser")
def test_a_lost_cell_is_asked_for_under_its_key_again(visitor: Visitor) -> None:
    """It may have been finished and paid for."""
    page = visitor.page
    page.locator("#grid-x-values").fill("0.6")
    keys: list[tuple[str, str]] = []
    away = True

    def lose(route: Any) -> None:
        headers = route.request.headers
        if route.request.method == "POST":
            keys.append((headers["idempotency-key"], headers["x-run-id"]))
        if away:
            route.abort("connectionrefused")
        else:
            route.continue_()

    page.route(re.compile(f"{GENERATE}|/api/runs/"), lose)
    page.locator("#grid-go").click()
    page.locator("#grid td .problem", has_text="cannot be reached").wait_for()
    assert page.evaluate("JSON.parse(sessionStorage['img2img.running'])[0].id") == keys[0][1]
    away = False
    page.locator("#grid-go").press("Enter")
    page.locator("#grid-said", has_text="1 of 1 made").wait_for()
    assert len(keys) > 1
    assert len(set(keys)) == 1
    wait_until(page, "sessionStorage.getItem('img2img.running') === null")


@pytest.mark.slow("browser")
def test_a_cell_that_was_finished_as_it_was_cancelled_is_kept(visitor: Visitor) -> None:
    page = visitor.page
    visitor.fill(steps="30", image_strength="0.2")
    page.locator("#grid-x-values").fill("0.2")
    sent: list[str] = []

    def finished(route: Any) -> None:
        sent.append(route.request.method)
        if route.request.method == "DELETE":
            data = {"state": "finished"}
            route.fulfill(json={"code": 0, "message": "success", "data": data})
        else:
            route.continue_()

    page.route(re.compile(f"{GENERATE}|/api/runs/"), finished)
    page.locator("#grid-go").click()
    page.locator("#grid td", has_text="/ 30").wait_for()
    page.locator("#grid-stop").press("Enter")
    page.locator("#grid-go").press("Enter")  # It is waited for, and not made twice.
    page.locator("#grid-said", has_text="1 of 1 made").wait_for()
    page.locator("#grid-go").wait_for()
    expect(page.locator("#strip li")).to_have_count(1)
    assert sent.count("POST") == 1


def test_what_is_wrong_is_said_before_the_click(visitor: Visitor) -> None:
    page = visitor.page
    page.locator("#grid-x").select_option("steps")
    page.locator("#grid-x-values").fill("10-60 (+10)")
    expect(page.locator("#grid-x-problem")).to_have_text("60 is not from 10 to 50.")
    expect(page.locator("#grid-x-values")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#grid-go")).to_be_disabled()
    expect(page.locator("#grid-go")).to_have_text("Make pictures")
    page.locator("#grid-x-values").fill("10-50 (+10)")
    expect(page.locator("#grid-go")).to_have_text("Make 5 pictures")
    expect(page.locator("#grid-x-values")).not_to_have_attribute("aria-invalid", "true")
    page.locator("#grid-y").select_option("steps")
    expect(page.locator("#grid-y-problem")).to_have_text("Both axes vary the same.")
    expect(page.locator("#grid-y")).to_have_attribute("aria-invalid", "true")
    page.locator("#grid-y").select_option("seed")
    expect(page.locator("#grid-y")).not_to_have_attribute("aria-invalid", "true")


def test_what_costs_more_than_is_left_is_said_before_the_click(visitor: Visitor) -> None:
    page = visitor.page
    account = {
        "name": "me",
        "credits": {"balance": "1.0", "reserved": "0.0"},
        "limits": {"concurrency": 4},
    }
    page.route(
        "**/api/account",
        lambda route: route.fulfill(json={"code": 0, "message": "success", "data": account}),
    )
    page.reload()
    visitor.ready()
    page.locator("#show-grid").click()
    page.locator("#grid-x").select_option("steps")
    page.locator("#grid-x-values").fill("10")
    expect(page.locator("#grid-cost")).to_contain_text("0.4 credits")
    expect(page.locator("#grid-cost")).not_to_contain_text("left")
    page.locator("#grid-x-values").fill("10-15")
    expect(page.locator("#grid-cost")).to_contain_text("more than the 1.0 credits left")
    expect(page.locator("#cost")).not_to_contain_text("left")
    page.locator("#sizes .chip", has_text="Other").click()
    visitor.fill(steps="50", width="1536", height="1536")
    expect(page.locator("#cost")).to_contain_text("more than the 1.0 credits left")
