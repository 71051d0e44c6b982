"""A cancel that the server does not hear: what it finishes is paid for, and must not be lost."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.browser.visitor import CUT, GENERATE, QUICK, RUNNING, STREAM, Visitor, expect, wait_until
from tests.server.server_process import ServerProcess

Visit = Callable[..., Visitor]
RUNS = "**/api/runs/*"
NOT_HEARD = "the server does not answer. Unless the run finishes first, it is withdrawn."


@pytest.fixture
def visitor(visit: Visit, real_server: ServerProcess) -> Visitor:
    return visit(real_server.url)


def away(route: Any) -> None:
    route.abort("internetdisconnected")


def cancel_unheard(visitor: Visitor, steps: str = "50") -> str:
    """Cancel a run that has begun, with no connection; return its id."""
    page = visitor.page
    visitor.sample()
    visitor.fill(steps=steps, image_strength="0.1")
    visitor.generate()
    page.locator("#run-text", has_text="Step").wait_for()
    page.route(RUNS, away)
    page.keyboard.press("Escape")
    page.locator("#form-error", has_text=NOT_HEARD).wait_for()
    return str(page.evaluate(f"{RUNNING}[0].id"))


def online(visitor: Visitor) -> None:
    visitor.page.unroute(RUNS)
    visitor.page.evaluate("window.dispatchEvent(new Event('online'))")


@pytest.mark.slow("browser")
def test_it_is_withdrawn_when_the_network_is_back(visitor: Visitor) -> None:
    cancel_unheard(visitor)
    online(visitor)
    visitor.page.locator("#form-error", has_text="Cancelled; nothing was charged.").wait_for()
    assert visitor.page.evaluate(RUNNING) == []
    expect(visitor.page.locator("#strip li")).to_have_count(0)


@pytest.mark.slow("browser")
@pytest.mark.parametrize("reloaded", [False, True], ids=["network", "reload"])
def test_what_was_finished_is_among_the_results(
    visitor: Visitor, real_server: ServerProcess, reloaded: bool
) -> None:
    run = cancel_unheard(visitor, "30")
    # Waits for its end.
    assert real_server.get(f"/api/runs/{run}").status_code == 200
    if reloaded:
        visitor.page.unroute(RUNS)
        visitor.page.reload()
    else:
        online(visitor)
    visitor.page.locator("#form-error", has_text="finished already").wait_for()
    expect(visitor.page.locator("#strip li")).to_have_count(1)
    wait_until(visitor.page, f"{RUNNING}.length === 0")


@pytest.mark.slow("browser")
def test_a_reload_withdraws_it(visitor: Visitor, real_server: ServerProcess) -> None:
    run = cancel_unheard(visitor)
    visitor.page.unroute(RUNS)
    sent: list[str] = []
    visitor.page.on("request", lambda one: run in one.url and sent.append(one.method))
    visitor.page.reload()
    visitor.page.locator("#form-error", has_text="Cancelled; nothing was charged.").wait_for()
    assert sent == ["GET", "DELETE"]
    assert visitor.page.evaluate(RUNNING) == []


@pytest.mark.slow("browser")
def test_in_a_run_anew_the_end_of_the_one_before_is_told(visitor: Visitor) -> None:
    page = visitor.page
    visitor.begin_a_long_run()
    visitor.fill(**QUICK)
    page.keyboard.press("Control+Enter")
    told = "The run before: Cancelled; nothing was charged."
    expect(page.locator("#form-error")).to_have_text(told)
    visitor.result()
    expect(page.locator("#strip li")).to_have_count(1)
    expect(page.locator("#form-error")).to_have_text(told)


@pytest.mark.slow("browser")
def test_a_complaint_about_a_run_outlives_the_end_of_the_one_before(visitor: Visitor) -> None:
    page = visitor.page
    visitor.begin_a_long_run()
    held: list[Any] = []
    page.route(RUNS, lambda route: held.append(route))
    visitor.refuse_once(500, "0", "something is wrong here")
    page.keyboard.press("Control+Enter")
    page.locator("#form-error", has_text="Something is wrong here.").wait_for()
    page.unroute(RUNS)
    with page.expect_response(RUNS):
        held[0].continue_()
    expect(page.locator("#status")).to_have_text("The run before: Cancelled; nothing was charged.")
    expect(page.locator("#form-error")).to_contain_text("Something is wrong here.")


@pytest.mark.slow("browser")
def test_what_ended_before_its_cancel_and_is_gone_is_offered_again(visitor: Visitor) -> None:
    page = visitor.page
    visitor.sample()
    visitor.fill(**QUICK)
    keys = visitor.fulfil_once(lambda route: route.fulfill(headers=STREAM, body=CUT))
    page.route(RUNS, away)
    visitor.generate()
    page.locator("#run-text", has_text="The run is looked for as soon as it is back").wait_for()
    page.unroute(RUNS)

    def finished(route: Any) -> None:
        if route.request.method == "DELETE":
            data = {"state": "finished"}
            route.fulfill(json={"code": 0, "message": "success", "data": data})
        else:
            route.continue_()

    page.route(RUNS, finished)
    page.keyboard.press("Escape")
    page.locator("#form-error", has_text="had ended before it was cancelled").wait_for()
    page.unroute(RUNS)
    page.get_by_role("button", name="Run again with the same seed").click()
    visitor.result()
    assert len(keys) == 2
    assert keys[0] == keys[1]  # by which the server gives what was paid for


@pytest.mark.slow("browser")
def test_a_cell_that_was_cancelled_unheard_is_asked_for_under_its_key(visitor: Visitor) -> None:
    page = visitor.page
    visitor.sample()
    visitor.fill(steps="50", image_strength="0.1")
    page.locator("#show-grid").click()
    page.locator("#grid-x-values").fill("0.1")
    sent: list[tuple[str, str]] = []

    def note(route: Any) -> None:
        headers = route.request.headers
        sent.append((headers["idempotency-key"], headers["x-run-id"]))
        route.continue_()

    page.route(re.compile(GENERATE), note)
    page.locator("#grid-go").click()
    page.locator("#grid td", has_text="/ 50").wait_for()
    page.route(RUNS, away)
    page.locator("#grid-stop").press("Enter")
    page.locator("#grid-go").wait_for()
    page.wait_for_timeout(500)
    assert page.evaluate(f"{RUNNING}[0].id") == sent[0][1]
    page.unroute(RUNS)
    page.locator("#grid-go").press("Enter")
    page.locator("#grid-said", has_text="1 of 1 made").wait_for(timeout=60_000)
    assert len(set(sent)) == 1
    expect(page.locator("#strip li")).to_have_count(1)
    wait_until(page, f"{RUNNING}.length === 0")


@pytest.mark.slow("browser")
def test_a_run_is_not_let_go_while_the_server_cannot_tell(visitor: Visitor) -> None:
    page = visitor.page
    visitor.begin_a_long_run()
    run = page.evaluate(f"{RUNNING}[0].id")

    def busy(route: Any) -> None:
        error = {"code": -1, "message": "the server is busy", "data": None}
        route.fulfill(status=503, headers={"Retry-After": "999"}, json=error)

    page.route(RUNS, busy)
    page.reload()
    page.locator("#form-error", has_text="The server is busy").wait_for()
    assert page.evaluate(f"{RUNNING}[0].id") == run
    page.unroute(RUNS)
    page.reload()
    visitor.ready()
    visitor.result()
    expect(page.locator("#strip li")).to_have_count(1)
    wait_until(page, f"{RUNNING}.length === 0")


CLICK_AS_IT_ENDS = """() => {
    const button = document.getElementById("generate");
    new MutationObserver(() => {
        if (button.hidden) return;
        const click = {bubbles: true, cancelable: true, detail: 1};
        button.dispatchEvent(new MouseEvent("click", click));
        window.clicked = true;
    }).observe(button, {attributes: true});
}"""


@pytest.mark.slow("browser")
def test_a_click_on_the_button_before_is_not_one_on_its_successor(visitor: Visitor) -> None:
    page = visitor.page
    sent: list[str] = []
    page.on("request", lambda one: sent.append(f"{one.method} {one.url}"))
    visitor.sample()
    visitor.fill(**QUICK)
    page.evaluate(CLICK_AS_IT_ENDS)
    page.locator("#generate").dblclick()  # Its second click is on Cancel.
    visitor.result()
    wait_until(page, "window.clicked")
    page.wait_for_timeout(300)
    expect(page.locator("#generate")).to_be_visible()
    expect(page.locator("#strip li")).to_have_count(1)
    assert sum(GENERATE in one for one in sent) == 1
    # What comes later is meant.
    visitor.fill(steps="50", image_strength="0.1")
    page.wait_for_timeout(400)
    page.locator("#generate").click()
    page.locator("#run-text", has_text="Step").wait_for()
    page.wait_for_timeout(400)
    page.locator("#cancel").click()
    page.locator("#form-error", has_text="Cancelled; nothing was charged.").wait_for()


@pytest.mark.slow("browser")
@pytest.mark.parametrize(("field", "keys"), [("#prompt", ["Control"]), ("#steps", [])])
def test_a_key_that_is_held_makes_one_picture(
    visitor: Visitor, field: str, keys: list[str]
) -> None:
    page = visitor.page
    sent: list[str] = []
    page.on("request", lambda one: sent.append(one.url))
    visitor.sample()
    visitor.fill(**QUICK)
    page.locator(field).focus()
    for key in keys:
        page.keyboard.down(key)
    for _ in range(4):
        page.keyboard.down("Enter")
    for key in ["Enter", *keys]:
        page.keyboard.up(key)
    visitor.result()
    assert sum(GENERATE in url for url in sent) == 1
