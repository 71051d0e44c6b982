"""The page for everyone: with a key, under a prefix, by a LAN address, on a phone, by axe-core."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.accounts.pricing import credits_text, price
from tests.browser.conftest import LAN_HOST
from tests.browser.visitor import Visitor, expect
from tests.server.server_process import ServerProcess, running_server

Visit = Callable[..., Visitor]
KEY = "the-key-of-the-tests"
AXE = Path(os.environ.get("AXE", Path.home() / ".cache" / "axe-core" / "axe.min.js"))
"""`npm pack axe-core` brings it; it is half a megabyte, and not kept here."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server under a prefix that asks for a key; the prompt says how many seconds it waits."""
    folder = tmp_path_factory.mktemp("access")
    settings = {"root_path": "/images", "api_keys": KEY}
    with running_server("tests.server.stub_server", folder, **settings) as process:
        process.url += "/images"
        process.wait_for("/health/ready")
        yield process


def lan(server: ServerProcess) -> str:
    return server.url.replace("127.0.0.1", LAN_HOST)


@pytest.mark.parametrize("slash", ["", "/"], ids=["without a slash", "with a slash"])
def test_a_picture_by_plain_http_under_a_prefix_with_a_key(
    visit: Visit, server: ServerProcess, slash: str
) -> None:
    visitor = visit(lan(server) + slash)
    page = visitor.page
    assert page.evaluate("isSecureContext") is False
    page.locator("#key-button", has_text="Key needed").wait_for()
    visitor.sample()
    visitor.fill(prompt="0.2")
    visitor.generate()
    page.get_by_role("button", name="Enter an API key").click()
    page.locator("#key").fill("wrong")
    page.locator("#key").press("Enter")
    page.locator("#key-said", has_text="key").wait_for()
    page.locator("#key").fill(KEY)
    page.locator("#key").press("Enter")
    page.locator("#key-dialog").wait_for(state="hidden")
    visitor.generate()
    visitor.result()
    # Copying falls back to a text that is selected.
    page.locator("#code summary").click()
    page.locator("#code").get_by_role("button", name="Python").click()
    code = page.locator("#text-shown").input_value()
    assert f'"{lan(server)}/api/generate/basic/imageToImage"' in code
    assert KEY not in code
    assert 'os.environ["API_KEY"]' in code
    page.locator("#text-close").click()
    # The key is this tab's alone, and outlives a reload.
    assert KEY not in page.evaluate("JSON.stringify(localStorage) + document.cookie")
    page.reload()
    visitor.ready()
    page.locator("#key-button", has_text="Key needed").wait_for(state="detached")
    assert visitor.complaints == []
    assert visitor.asked_hosts == {LAN_HOST}


@pytest.mark.parametrize("path", ["", "/", "/?from=mail"])
def test_the_skip_link_leads_to_the_prompt_and_loads_nothing(
    visit: Visit, server: ServerProcess, path: str
) -> None:
    page = visit(server.url + path).page
    page.evaluate("window.loaded = 'once'")
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#prompt")).to_be_focused()
    assert page.evaluate("window.loaded") == "once"


HOLD_ACCOUNT = """
    const { fetch } = window;
    window.fetch = async (url, options) => {
        const answer = await fetch(url, options);
        if (String(url).endsWith("/api/account") && !window.release) {
            await new Promise((resolve) => { window.release = resolve; });
        }
        return answer;
    };
"""


def test_what_was_said_without_a_key_does_not_count_with_one(
    visit: Visit, server: ServerProcess
) -> None:
    visitor = visit(server.url, script=HOLD_ACCOUNT)
    page = visitor.page
    button = page.locator("#key-button")
    visitor.enter_key(KEY)
    expect(button).not_to_have_text("API key")
    accepted = button.inner_text()
    page.evaluate(
        """async () => {
            release();
            await new Promise((resolve) => setTimeout(resolve, 100));
        }"""
    )
    expect(button).to_have_text(accepted)


def test_the_price_is_the_servers(visit: Visit, server: ServerProcess) -> None:
    visitor = visit(server.url)
    for width, height, steps in ((320, 320, 10), (512, 512, 30), (1536, 1536, 50), (768, 512, 41)):
        shown = visitor.page.evaluate(
            """async ([width, height, steps]) => {
                const costs = await import(new URL("static/page/costs.js", document.baseURI));
                const about = await (await fetch(new URL("api/about", document.baseURI))).json();
                return costs.creditsText(costs.price(about.data.price, width, height, steps));
            }""",
            [width, height, steps],
        )
        assert shown == f"{credits_text(price(width, height, steps))}\u00a0credits"


def test_a_phone_has_the_button_in_reach(visit: Visit, server: ServerProcess) -> None:
    visitor = visit(
        server.url, viewport={"width": 390, "height": 780}, has_touch=True, is_mobile=True
    )
    page = visitor.page
    visitor.sample()
    expect(page.locator("#generate")).to_be_visible()
    for position in (0, 600, 5000):  # the page is longer than the screen
        page.evaluate(f"scrollTo(0, {position})")
        box = page.locator("#generate").bounding_box()
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= 780
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    sizes = page.evaluate(
        """() => [...document.querySelectorAll("#form textarea, #form select, #form input")]
            .map(e => parseFloat(getComputedStyle(e).fontSize))"""
    )
    assert min(sizes) >= 16


def test_typing_an_ime_word_sends_nothing(visit: Visit, server: ServerProcess) -> None:
    visitor = visit(server.url)
    visitor.page.evaluate(
        """() => document.getElementById("prompt").dispatchEvent(new KeyboardEvent(
            "keydown", {key: "Enter", ctrlKey: true, isComposing: true, bubbles: true}))"""
    )
    expect(visitor.page.locator("#form-error")).to_have_text("")


@pytest.mark.slow("browser")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(visit: Visit, server: ServerProcess, scheme: str) -> None:
    if not AXE.exists():
        pytest.skip(f"no axe-core at {AXE} (npm pack axe-core)")
    visitor = visit(server.url, color_scheme=scheme)
    page = visitor.page
    visitor.enter_key(KEY)
    source = AXE.read_text(encoding="utf-8")

    def violations(where: str) -> list[str]:
        page.evaluate(source)
        found = page.evaluate("axe.run().then(result => result.violations)")
        return [
            f"{where}: {item['id']} {[node['target'] for node in item['nodes']]}"
            for item in found
            if item["impact"] in ("serious", "critical")
        ]

    problems = violations("empty")
    page.evaluate("document.querySelectorAll('details').forEach(e => { e.open = true; })")
    page.locator("#generate").click()
    problems += violations("errors")
    visitor.sample()
    page.locator("#mask-open").click()
    problems += violations("mask")
    visitor.fill(prompt="0")
    visitor.generate()
    visitor.result()
    problems += violations("result")
    page.locator("#show-grid").click()
    problems += violations("grid")
    page.locator("#key-button").click()
    problems += violations("key")
    assert problems == []
