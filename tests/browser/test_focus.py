"""Whoever uses the keyboard alone goes on where they are: no action leaves the focus nowhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.browser.visitor import GENERATE, QUICK, Visitor, expect
from tests.server.server_process import ServerProcess

Visit = Callable[..., Visitor]


def press(control: Any, key: str = "Enter") -> None:
    control.focus()
    control.page.keyboard.press(key)


@pytest.mark.slow("browser")
def test_the_focus_goes_on_from_what_hides(visit: Visit, real_server: ServerProcess) -> None:
    visitor = visit(real_server.url, permissions=["clipboard-read", "clipboard-write"])
    page = visitor.page
    at = page.locator

    press(at("#samples button").first)
    expect(at("#change-picture")).to_be_focused()
    visitor.fill(steps="50", image_strength="0", seed="7")
    press(at("#generate"))
    expect(at("#cancel")).to_be_focused()
    press(at("#cancel"))
    expect(at("#generate")).to_be_focused()
    visitor.fill(**QUICK)
    for _ in range(2):
        press(at("#generate"))
        at("#run-line").wait_for()
        visitor.result()
        expect(at("#generate")).to_be_focused()
    press(at("#code summary"))
    press(at("#code button").first)
    expect(at("#code summary")).to_be_focused()

    press(at("#strip .delete").first)
    expect(at("#strip .delete")).to_have_count(1)
    expect(at("#strip .delete")).to_be_focused()
    press(at("#undo-delete"))
    expect(at("#strip li > button").first).to_be_focused()
    press(at("#clear-results"))
    expect(at("#undo-delete")).to_be_focused()

    press(at("#use-as-input"))
    expect(at("#show-input")).to_be_focused()
    press(at("#remove-picture"))
    expect(at("#undo-picture")).to_be_focused()
    press(at("#undo-picture"))
    expect(at("#change-picture")).to_be_focused()

    press(at("#show-grid"))
    press(at("#grid-go"))
    expect(at("#grid-stop")).to_be_focused()
    press(at("#grid-stop"))
    expect(at("#grid-go")).to_be_focused()
    assert visitor.complaints == []


@pytest.mark.slow("browser")
def test_enter_that_is_held_does_not_cancel_what_it_began(
    visit: Visit, real_server: ServerProcess
) -> None:
    visitor = visit(real_server.url)
    visitor.sample()
    visitor.fill(steps="50", image_strength="0")
    visitor.page.locator("#generate").focus()
    for _ in range(4):
        visitor.page.keyboard.down("Enter")
        visitor.page.wait_for_timeout(100)
    expect(visitor.page.locator("#cancel")).to_be_focused()


@pytest.mark.slow("browser")
def test_after_the_key_dialog_the_focus_is_at_generate(
    visit: Visit, real_server: ServerProcess
) -> None:
    """Its opener is gone: a key that is accepted takes the complaint about none away."""
    visitor = visit(real_server.url)
    page = visitor.page
    body = '{"code":-1,"message":"a key is wanted","data":null}'
    page.route(f"**{GENERATE}", lambda route: route.fulfill(status=401, body=body))
    visitor.sample()
    visitor.generate()
    press(page.get_by_role("button", name="Enter an API key"))
    page.locator("#key").fill("any")
    page.keyboard.press("Enter")
    page.locator("#key-dialog").wait_for(state="hidden")
    expect(page.locator("#form-error")).to_have_text("")
    expect(page.locator("#generate")).to_be_focused()
