"""One browser for all tests of pages, and a server with the model that ships."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator

import pytest

from tests.browser.visitor import Visitor
from tests.server.server_process import PRODUCT, ServerProcess, running_server
from tests.services import skip_or_fail

sync_api = pytest.importorskip("playwright.sync_api")

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
LAN_HOST = "lan.test"
"""A name of this machine that is no secure context, as an address in a LAN is none."""


@pytest.fixture(scope="package")
def browser() -> Iterator[sync_api.Browser]:
    if CHROMIUM is None:
        skip_or_fail("no Chromium is installed (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                f"--host-resolver-rules=MAP {LAN_HOST} 127.0.0.1",
            ],
        )
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def real_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The product with the model that ships, open to all."""
    folder = tmp_path_factory.mktemp("page")
    with running_server(PRODUCT, folder, "serve", no_auth="true") as process:
        process.wait_for("/health/ready")
        yield process


@pytest.fixture
def visit(browser: sync_api.Browser) -> Iterator[Callable[..., Visitor]]:
    """Opens the page as a visitor of its own, with no storage of anyone else."""
    visitors: list[Visitor] = []

    def open_page(url: str, **options: object) -> Visitor:
        visitors.append(Visitor(browser, url, **options))
        return visitors[-1]

    yield open_page
    for visitor in visitors:
        visitor.context.close()
