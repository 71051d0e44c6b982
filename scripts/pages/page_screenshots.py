"""Draw the screenshots of the page in docs/images, by a server and a browser of its own.

    .venv/bin/python scripts/make_page_screenshots [NAME ...]

Names are those of the pictures: empty, forming, done, mask, grid, error, dark, phone. It needs the
packages of the tests, and Chromium.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from scripts.paths import ROOT
from tests.browser.conftest import CHROMIUM
from tests.browser.visitor import QUICK, Visitor
from tests.server.server_process import PRODUCT, running_server

FOLDER = ROOT / "docs" / "images"
COLOURS = 256
LONG = {"steps": "50", "image_strength": "0.45"}
SEED = "7"
DESK: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "has_touch": True,
    "is_mobile": True,
}


class Photographer:
    """Visits the page of a server, and keeps what is seen there."""

    def __init__(self, browser: Browser, url: str) -> None:
        self._browser = browser
        self._url = url

    def visit(self, **options: Any) -> Visitor:
        """The page with a sample and a prompt."""
        visitor = Visitor(self._browser, self._url, **DESK | options)
        visitor.sample("house")
        visitor.fill(seed=SEED, **LONG)
        for fold in visitor.page.locator("details.group[open]").all():
            fold.evaluate("e => { e.open = false; }")
        visitor.page.evaluate("document.querySelector('.fields').scrollTop = 0; scrollTo(0, 0)")
        return visitor

    def keep(self, visitor: Visitor, name: str) -> None:
        file = FOLDER / f"page-{name}.png"
        visitor.page.screenshot(path=file)
        # A palette: a third of the bytes, and no difference to see.
        with Image.open(file) as shot:
            small = shot.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
        small.save(file, optimize=True)
        print(file.relative_to(ROOT))

    def empty(self) -> None:
        self.keep(Visitor(self._browser, self._url, **DESK), "empty")

    def forming(self) -> None:
        visitor = self.visit()
        visitor.generate()
        visitor.page.locator("#run-text", has_text="Step 2").wait_for()
        self.keep(visitor, "forming")
        visitor.page.keyboard.press("Escape")

    def done(self) -> None:
        self._done("done")

    def dark(self) -> None:
        self._done("dark", color_scheme="dark")

    def phone(self) -> None:
        self._done("phone", **PHONE)

    def _done(self, name: str, **options: Any) -> None:
        visitor = self.visit(**options)
        visitor.generate()
        visitor.result()
        self.keep(visitor, name)

    def error(self) -> None:
        visitor = self.visit()
        visitor.fill(steps="5")
        visitor.generate()
        self.keep(visitor, "error")

    def mask(self) -> None:
        visitor = self.visit()
        mouse = visitor.page.mouse
        visitor.page.locator("#mask-open").click()
        box = visitor.page.locator("#mask").bounding_box()

        def at(x: float, y: float) -> tuple[float, float]:
            return box["x"] + x * box["width"], box["y"] + y * box["height"]

        mouse.move(*at(0.3, 0.45))
        mouse.down()
        for x, y in ((0.5, 0.28), (0.7, 0.45), (0.3, 0.45)):
            mouse.move(*at(x, y), steps=8)
        mouse.up()
        mouse.move(*at(0.62, 0.66))
        visitor.page.locator("#cost", has_text="only what the mask covers").wait_for()
        self.keep(visitor, "mask")

    def grid(self) -> None:
        visitor = self.visit()
        visitor.fill(**QUICK)
        page = visitor.page
        page.locator("#more").evaluate("e => { e.open = false; }")
        page.locator("#show-grid").click()
        page.locator("#grid-y").select_option("style_preset")
        page.locator("#grid-y-values").fill("none, line-art")
        page.locator("#grid-go").click()
        page.locator("#grid-said", has_text="8 of 8 made").wait_for(timeout=120_000)
        self.keep(visitor, "grid")


NAMES = ("empty", "forming", "done", "mask", "grid", "error", "dark", "phone")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    names = parser.parse_args().names or NAMES
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server(PRODUCT, Path(folder), "serve", no_auth="true") as server,
        sync_playwright() as playwright,
    ):
        server.wait_for("/health/ready")
        arguments = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        photographer = Photographer(browser, server.url)
        for name in names:
            getattr(photographer, name)()
        browser.close()
    return 0
