"""Someone at the page: a browser context of their own, and what they do there."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

expect = pytest.importorskip("playwright.sync_api").expect
"""Waits for what the page shows, where `assert` would look once, maybe too early."""
expect.set_options(timeout=30_000)

GENERATE = "/api/generate/basic/imageToImage"
QUICK = {"steps": "10", "image_strength": "0.5"}
CLIPBOARD = ["clipboard-read", "clipboard-write"]
RUNNING = "JSON.parse(sessionStorage.getItem('img2img.running') ?? '[]')"
"""The runs that the page would look for after a reload."""
STREAM = {"Content-Type": "text/event-stream"}
CUT = (
    'event: progress\ndata: {"step":1,"steps":5,"evaluation":1,"evaluations":5,'
    '"queue_position":0}\n\n'
)
"""A stream that ends before its result."""


def wait_until(page: Any, holds: str) -> None:
    """Wait until a JavaScript expression holds.

    Playwright's own `wait_for_function` evaluates in the page, whose policy forbids that.
    """
    give_up = time.monotonic() + 30
    while not page.evaluate(holds):
        assert time.monotonic() < give_up, holds
        page.wait_for_timeout(50)


class Visitor:
    """The page, opened, with every host it asked and every complaint of the browser."""

    def __init__(self, browser: Any, url: str, script: str = "", **options: Any) -> None:
        options.setdefault("viewport", {"width": 1280, "height": 900})
        self.context = browser.new_context(**options)
        self.asked_hosts: set[str] = set()
        self.complaints: list[str] = []
        self.url = url
        self.host = str(urlsplit(url).hostname)
        if script:
            self.context.add_init_script(script)
        self.page = self.new_tab()

    def new_tab(self) -> Any:
        page = self.context.new_page()
        page.set_default_timeout(30_000)
        page.on("request", lambda request: self._asked(request.url))
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: dialog.accept())
        page.goto(self.url)
        self.ready(page)
        return page

    def _asked(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob"):
            self.asked_hosts.add(str(parts.hostname))

    def _hear(self, message: Any) -> None:
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.complaints.append(message.text)

    def ready(self, page: Any = None) -> None:
        (page or self.page).locator("html[data-ready]").wait_for()

    def sample(self, name: str = "house", page: Any = None) -> None:
        """Take a sample as the input."""
        page = page or self.page
        page.locator(f'#samples img[src$="{name}.png"]').click()
        page.locator("#input-picture").wait_for()

    def paint(self, x: float, y: float) -> None:
        """Paint a dot of the mask on the input, with the mask's tools out."""
        tools = self.page.locator("#mask-tools")
        self.page.locator("#show-input").click()
        if not tools.is_visible():
            self.page.locator("#mask-open").click()
            tools.wait_for()
        box = self.page.locator("#mask").bounding_box()
        self.page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])
        expect(self.page.locator("#mask-open")).to_have_text("Mask ●")

    def fill(self, **values: str) -> None:
        """Set fields, wherever they are folded away."""
        for name, value in values.items():
            field = self.page.locator(f"#{name}")
            field.evaluate("e => { if (e.closest('details')) e.closest('details').open = true; }")
            if field.evaluate("e => e.tagName") == "SELECT":
                field.select_option(value)
            else:
                field.fill(value)

    def enter_key(self, key: str) -> None:
        self.page.locator("#key-button").click()
        self.page.locator("#key").fill(key)
        self.page.locator("#key-form [type=submit]").click()
        self.page.locator("#key-dialog").wait_for(state="hidden")

    def generate(self) -> None:
        """Press Generate, by a key: right after a run a click is taken for one on Cancel."""
        self.page.locator("#generate").wait_for()
        self.page.locator("#generate").press("Enter")

    def begin_a_long_run(self) -> None:
        """Begin one from a sample that goes on for a while, and wait for its first steps."""
        self.sample()
        self.fill(steps="50", image_strength="0.1")
        self.generate()
        self.page.locator("#run-text", has_text="Step").wait_for()

    def result(self) -> None:
        """Wait for the result beside its input."""
        self.page.locator("#result-actions").wait_for(timeout=120_000)

    def downloaded(self) -> bytes:
        """Download the result that is shown."""
        with self.page.expect_download() as coming:
            self.page.locator("#download").click()
        return Path(coming.value.path()).read_bytes()

    def copied_code(self, language: str) -> str:
        """Copy the result that is shown as code; the visitor may use the clipboard (CLIPBOARD)."""
        self.page.locator("#code summary").click()
        self.page.locator("#code").get_by_role("button", name=language).click()
        return str(self.page.evaluate("navigator.clipboard.readText()"))

    def seed_shown(self) -> str:
        return self.page.locator("#use-seed").inner_text().removeprefix("Seed ")

    def refuse_once(self, status: int, retry_after: str, message: str, times: int = 1) -> list[str]:
        """As `fulfil_once`, by a failure in the envelope that says when to come again."""
        failure = {"code": -1, "message": message, "data": None}
        return self.fulfil_once(
            lambda route: route.fulfill(
                status=status, headers={"Retry-After": retry_after}, json=failure
            ),
            times,
        )

    def fulfil_once(self, answer: Callable[[Any], None], times: int = 1) -> list[str]:
        """Answer the next request for a picture, or the next `times`, by `answer`.

        The list has all Idempotency-Keys.
        """
        keys: list[str] = []

        def handle(route: Any) -> None:
            keys.append(route.request.headers["idempotency-key"])
            if len(keys) <= times:
                answer(route)
            else:
                route.continue_()

        self.page.route(f"**{GENERATE}", handle)
        return keys

    def bodies_sent(self) -> list[bytes]:
        """Let requests for pictures through; the list has the bodies of all from now on."""
        bodies: list[bytes] = []

        def note(route: Any) -> None:
            bodies.append(route.request.post_data_buffer)
            route.continue_()

        self.page.route(f"**{GENERATE}", note)
        return bodies

    def screenshot(self, name: str) -> None:
        """Keep a picture of the page where SCREENSHOTS names a folder."""
        if folder := os.environ.get("SCREENSHOTS"):
            self.page.screenshot(path=Path(folder) / f"page-{name}.png")
