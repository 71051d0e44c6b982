"""What must not be lost: by a reload, a slip of the finger, a storage that is full or broken."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.browser.visitor import CUT, GENERATE, QUICK, RUNNING, STREAM, Visitor, expect, wait_until
from tests.server.server_process import ServerProcess

Visit = Callable[..., Visitor]


@pytest.fixture
def visitor(visit: Visit, real_server: ServerProcess) -> Visitor:
    return visit(real_server.url)


def begin_a_long_run(visitor: Visitor) -> str:
    """Return the seed of a run that has begun and goes on for a while."""
    visitor.begin_a_long_run()
    return str(visitor.page.evaluate(f"{RUNNING}[0].seed"))


@pytest.mark.slow("browser")
def test_a_run_is_found_again_after_a_reload(visitor: Visitor, real_server: ServerProcess) -> None:
    page = visitor.page
    seed = begin_a_long_run(visitor)
    sent: list[str] = []
    page.on("request", lambda one: sent.append(f"{one.method} {one.url}"))
    page.reload()
    visitor.ready()
    page.locator("#run-text", has_text="Step").wait_for()
    assert page.locator("#before").get_attribute("src")
    visitor.result()
    assert visitor.seed_shown() == seed
    expect(page.locator("#strip li")).to_have_count(1)
    assert not [one for one in sent if GENERATE in one]
    # In hand, it is not kept by the server any more.
    wait_until(page, "sessionStorage.getItem('img2img.running') === null")
    (run,) = {one.rpartition("/")[2] for one in sent if "/api/runs/" in one}
    give_up = time.monotonic() + 10
    while real_server.get(f"/api/runs/{run}").status_code != 404:
        assert time.monotonic() < give_up


@pytest.mark.slow("browser")
def test_a_run_that_is_gone_after_a_reload_is_offered_again(visitor: Visitor) -> None:
    page = visitor.page
    seed = begin_a_long_run(visitor)
    # As if the server had been started anew meanwhile.
    page.evaluate(
        """() => {
            const [run] = JSON.parse(sessionStorage.getItem("img2img.running"));
            const other = {...run, id: "0".repeat(32)};
            sessionStorage.setItem("img2img.running", JSON.stringify([other]));
        }"""
    )
    page.reload()
    visitor.ready()
    page.locator("#form-error", has_text="The run was cut off. Unless it was finished").wait_for()
    page.get_by_role("button", name="Run again with the same seed").click()
    visitor.result()
    assert visitor.seed_shown() == seed


@pytest.mark.slow("browser")
def test_a_run_is_found_again_when_the_network_is_back(visitor: Visitor) -> None:
    """As after a phone has slept: the stream is dead, and so is every request for a while."""
    page = visitor.page
    visitor.sample()
    visitor.fill(**QUICK)
    visitor.fulfil_once(lambda route: route.fulfill(headers=STREAM, body=CUT))
    found = []

    def find(route: Any) -> None:
        found.append(route.request.url)
        if len(found) <= 6:
            route.abort("internetdisconnected")
        else:
            route.continue_()

    page.route("**/api/runs/*", find)
    visitor.generate()
    page.locator("#run-text", has_text="The run is looked for as soon as it is back").wait_for()
    page.evaluate("window.dispatchEvent(new Event('online'))")
    page.locator("#form-error", has_text="cut off").wait_for()
    assert len(set(found)) == 1


def begin_a_long_grid(visitor: Visitor, across: str, values: str) -> None:
    """Make a grid, and return once a cell of it has begun."""
    visitor.sample()
    visitor.fill(steps="50", image_strength="0.1")
    page = visitor.page
    page.locator("#show-grid").click()
    page.locator("#grid-x").select_option(across)
    page.locator("#grid-x-values").fill(values)
    page.locator("#grid-go").click()
    page.locator("#grid td", has_text="/ 50").first.wait_for()


@pytest.mark.slow("browser")
def test_cells_of_a_grid_are_found_again_after_a_reload(visitor: Visitor) -> None:
    page = visitor.page
    begin_a_long_grid(visitor, "cfg_scale", "3, 7")
    page.reload()
    visitor.ready()
    page.locator("#strip-title", has_text="Results (2)").wait_for(timeout=120_000)


@pytest.mark.slow("browser")
def test_a_cell_is_not_let_go_while_the_server_cannot_tell(visitor: Visitor) -> None:
    page = visitor.page
    begin_a_long_grid(visitor, "image_strength", "0.1")
    asked: list[str] = []

    def busy(route: Any) -> None:
        asked.append(route.request.method)
        error = {"code": -1, "message": "busy", "data": None}
        route.fulfill(status=503, headers={"Retry-After": "999"}, json=error)

    page.route("**/api/runs/*", busy)
    with page.expect_response("**/api/runs/*"):
        page.reload()
    visitor.ready()
    page.wait_for_timeout(300)
    assert asked == ["GET"]
    page.unroute("**/api/runs/*")
    page.reload()
    visitor.ready()
    page.locator("#strip-title", has_text="Results (1)").wait_for(timeout=120_000)


@pytest.mark.slow("browser")
def test_two_tabs_do_not_touch_each_other(visitor: Visitor) -> None:
    visitor.sample("house")
    visitor.fill(prompt="one")
    visitor.page.wait_for_timeout(500)
    other = visitor.new_tab()
    expect(other.locator("#prompt")).to_have_value("one")  # as the last visit left it
    other.locator("#remove-picture").click()
    visitor.sample("star", other)
    other.locator("#prompt").fill("two")
    other.wait_for_timeout(500)
    for page, prompt, picture in ((visitor.page, "one", "house"), (other, "two", "star")):
        page.reload()
        visitor.ready(page)
        expect(page.locator("#prompt")).to_have_value(prompt)
        expect(page.locator("#stage-note")).to_contain_text(f"{picture}.png")


FULL_AFTER_TWO = """
    const put = IDBObjectStore.prototype.put;
    IDBObjectStore.prototype.put = function (record) {
        const full = this.name === "results" && (window.kept ?? 0) >= 2;
        if (full) throw new DOMException("full", "QuotaExceededError");
        if (this.name === "results") window.kept = (window.kept ?? 0) + 1;
        return put.call(this, record);
    };
    const remove = IDBObjectStore.prototype.delete;
    IDBObjectStore.prototype.delete = function (id) {
        if (this.name === "results") window.kept -= 1;
        return remove.call(this, id);
    };
"""


@pytest.mark.slow("browser")
def test_full_storage_drops_the_oldest_and_says_so(
    visit: Visit, real_server: ServerProcess
) -> None:
    visitor = visit(real_server.url, script=FULL_AFTER_TWO)
    visitor.sample()
    visitor.fill(**QUICK)
    seeds = []
    for count in range(3):
        visitor.fill(seed=str(11 + count))
        visitor.generate()
        visitor.page.locator("#use-seed", has_text=str(11 + count)).wait_for()
        visitor.result()
        seeds.append(visitor.seed_shown())
    visitor.page.locator("#storage-note", has_text="the oldest result was dropped").wait_for()
    expect(visitor.page.locator("#strip li")).to_have_count(2)
    newest = visitor.page.locator("#strip li button").first.get_attribute("aria-label")
    assert newest.endswith("seed 13")
    assert seeds == ["11", "12", "13"]


BROKEN = """
    window.addEventListener("load", () => {
        IDBObjectStore.prototype.put = function () {
            throw new DOMException("the connection was lost", "UnknownError");
        };
    });
"""


@pytest.mark.slow("browser")
def test_a_storage_that_breaks_costs_no_result(visit: Visit, real_server: ServerProcess) -> None:
    """Only what is full is mended by dropping what is oldest."""
    visitor = visit(real_server.url)
    page = visitor.page
    visitor.sample()
    visitor.fill(**QUICK)
    for script in ("", BROKEN):
        if script:
            visitor.context.add_init_script(script)
            page.reload()
            visitor.ready()
        visitor.generate()
        page.locator("#strip li").nth(1 if script else 0).wait_for()
    page.locator("#banners", has_text="This browser keeps no pictures").wait_for()
    expect(page.locator("#strip li")).to_have_count(2)


NO_DATABASE = """
    const refuse = () => { throw new DOMException("", "SecurityError"); };
    Object.defineProperty(window, "indexedDB", {get: refuse});
"""


def test_a_browser_that_keeps_nothing_says_so_at_once(
    visit: Visit, real_server: ServerProcess
) -> None:
    page = visit(real_server.url, script=NO_DATABASE).page
    said = "This browser keeps no pictures: a reload will lose them."
    expect(page.get_by_text(said).first).to_be_in_viewport()
    expect(page.get_by_role("status").filter(has_text=said)).to_have_count(1)


def test_what_a_slip_removes_is_brought_back(visitor: Visitor) -> None:
    page = visitor.page
    visitor.sample()
    page.locator("#mask-open").click()
    box = page.locator("#mask").bounding_box()
    page.mouse.click(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    page.locator("#mask-open", has_text="Mask ●").click()
    page.locator("#cost", has_text="only what the mask covers").wait_for()
    page.locator("#remove-picture").click()
    page.locator("#drop").wait_for()
    visitor.sample("car")  # of another shape, so that the mask goes too
    expect(page.locator("#mask-open")).to_have_text("Mask")
    page.get_by_role("button", name="Back to house.png").click()
    page.locator("#stage-note", has_text="house.png").wait_for()
    expect(page.locator("#mask-open")).to_have_text("Mask ●")
    page.get_by_role("button", name="Back to car.png").wait_for()

    # A result, and what made it.
    visitor.fill(**QUICK)
    visitor.generate()
    visitor.result()
    seed = visitor.seed_shown()
    page.locator("#strip li").hover()
    page.get_by_role("button", name="Delete result").click()
    expect(page.locator("#strip li")).to_have_count(0)
    page.locator("#undo-delete").click()
    page.locator("#strip li").wait_for()
    page.locator("#undo-delete").wait_for(state="hidden")
    page.reload()
    visitor.ready()
    page.locator("#strip li button").first.click()
    visitor.result()
    assert visitor.seed_shown() == seed
    assert visitor.complaints == []


ADD_RESULTS = """async (seeds) => {
    const { Pictures } = await import(new URL("static/page/store.js", document.baseURI));
    const pictures = await new Pictures(() => {}).open();
    const canvas = new OffscreenCanvas(8, 8);
    canvas.getContext("2d").fillRect(0, 0, 8, 8);
    const blob = await canvas.convertToBlob();
    for (const seed of seeds) {
        const values = {prompt: "", resize_mode: ""};
        const input = {id: `input${seed}`, name: "in.png", kind: "file", width: 8, height: 8, blob};
        await pictures.addResult(
            {id: `r${seed}`, at: seed, picture: blob, thumbnail: blob, seed, values,
             width: 8, height: 8, input: input.id}, input);
    }
}"""
KEPT_RESULTS = """async () => {
    const { Pictures } = await import(new URL("static/page/store.js", document.baseURI));
    const pictures = await new Pictures(() => {}).open();
    const kept = [];
    for (const {seed, input} of await pictures.results()) {
        kept.push([seed, (await pictures.input(input))?.id]);
    }
    return kept;
}"""


def test_clear_all_leaves_what_another_tab_made(visitor: Visitor) -> None:
    page = visitor.page
    page.evaluate(ADD_RESULTS, [1, 2, 3])
    page.reload()
    visitor.ready()
    expect(page.locator("#strip-title")).to_have_text("Results (3)")
    other = visitor.new_tab()
    other.evaluate(ADD_RESULTS, [4, 5])
    page.locator("#clear-results").click()
    expect(page.locator("#strip li")).to_have_count(0)
    wait_until(page, f"({KEPT_RESULTS})().then((kept) => kept.length === 2)")
    assert page.evaluate(KEPT_RESULTS) == [[4, "input4"], [5, "input5"]]
    page.locator("#undo-delete").click()
    expect(page.locator("#strip li")).to_have_count(3)
    wait_until(page, f"({KEPT_RESULTS})().then((kept) => kept.length === 5)")
    assert page.evaluate(KEPT_RESULTS) == [[seed, f"input{seed}"] for seed in range(1, 6)]


CLICK_AGAIN = """() => {
    const strip = document.getElementById("strip");
    new MutationObserver((_, observer) => {
        observer.disconnect();
        const click = {bubbles: true, cancelable: true, detail: 2};
        strip.querySelector(".delete").dispatchEvent(new MouseEvent("click", click));
    }).observe(strip, {childList: true});
}"""


def test_a_double_click_deletes_one_result(visitor: Visitor) -> None:
    page = visitor.page
    page.evaluate(ADD_RESULTS, [1, 2, 3])
    page.reload()
    visitor.ready()
    page.evaluate(CLICK_AGAIN)  # As the next result moves under the pointer.
    page.locator("#strip .delete").first.click()
    wait_until(page, f"({KEPT_RESULTS})().then((kept) => kept.length < 3)")
    page.locator("#undo-delete").click()
    expect(page.locator("#strip li")).to_have_count(3)
    # What comes later is meant.
    page.wait_for_timeout(400)
    for left in (2, 1):
        page.locator("#strip .delete").first.click()
        expect(page.locator("#strip li")).to_have_count(left)
        page.wait_for_timeout(400)


def test_of_two_results_the_one_opened_last_is_shown(visitor: Visitor) -> None:
    page = visitor.page
    page.evaluate(ADD_RESULTS, [1, 2])
    page.reload()
    visitor.ready()
    page.evaluate(
        """() => {
            const decode = HTMLImageElement.prototype.decode;
            let slow = 400;
            HTMLImageElement.prototype.decode = async function () {
                const wait = slow;
                slow = 0;
                await new Promise((resolve) => setTimeout(resolve, wait));
                return decode.call(this);
            };
            const [second, first] = document.querySelectorAll("#strip li button:first-child");
            first.click();
            setTimeout(() => second.click(), 100);
        }"""
    )
    expect(page.locator("#use-seed")).to_have_text("Seed 2")
    page.wait_for_timeout(700)
    expect(page.locator("#use-seed")).to_have_text("Seed 2")
    expect(page.locator("#download")).to_have_attribute("download", "img2img-2.png")
    expect(page.locator("#after")).to_have_attribute("alt", "Result, seed 2")
