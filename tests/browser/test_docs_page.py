"""The API's description in a real browser that can reach nothing but the server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.server.pictures import file_of, gradient
from tests.server.server_process import ServerProcess, running_server

sync_api = pytest.importorskip("playwright.sync_api")

PATH = "/api/generate/basic/imageToImage"


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("", id="at the root"),
        pytest.param("/images", id="under a prefix", marks=pytest.mark.slow("browser")),
    ],
)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("docs")
    settings = {"root_path": request.param, "api_keys": "the-key"}
    with running_server("tests.server.stub_server", folder, **settings) as process:
        process.url += request.param
        process.wait_for("/health/ready")
        yield process


class Visit:
    """The documentation page, opened, with every request and complaint it made."""

    def __init__(self, browser: sync_api.Browser, server: ServerProcess) -> None:
        self.asked_hosts: set[str] = set()
        self.complaints: list[str] = []
        self.page = browser.new_page(viewport={"width": 1200, "height": 1800})
        self.page.route("**/*", self._let_through_to_the_server_alone)
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(f"{server.url}/docs")
        self.page.locator(".opblock-post").first.wait_for()

    def _let_through_to_the_server_alone(self, route: sync_api.Route) -> None:
        parts = urlsplit(route.request.url)
        if parts.scheme in ("data", "blob"):
            route.continue_()
            return
        self.asked_hosts.add(str(parts.hostname))
        if parts.hostname == "127.0.0.1":
            route.continue_()
        else:
            route.abort()

    def _hear(self, message: sync_api.ConsoleMessage) -> None:
        if message.type == "error":
            self.complaints.append(message.text)


@pytest.fixture
def visit(browser: sync_api.Browser, server: ServerProcess) -> Iterator[Visit]:
    visit = Visit(browser, server)
    yield visit
    visit.page.close()


def open_form(visit: Visit) -> None:
    visit.page.locator(".opblock-post .opblock-summary-control").click()
    visit.page.locator('input[type="file"]').first.wait_for()


def test_the_form_is_shown_without_any_other_host(visit: Visit) -> None:
    open_form(visit)
    page = visit.page
    text = page.locator(".opblock-post").inner_text()
    for name in (
        "init_image",
        "prompt",
        "width",
        "height",
        "image_strength",
        "cfg_scale",
        "clip_guidance_preset",
        "sampler",
        "seed",
        "steps",
        "style_preset",
    ):
        assert name in text, name
    choices = page.locator(".opblock-post select").all_inner_texts()
    for shown in ("K_DPMPP_2S_ANCESTRAL", "modeling-compound", "FAST_BLUE"):
        assert any(shown in choice for choice in choices), shown
    for limit in ("minimum: 320", "maximum: 1536", "multiple of 64", "maximum: 35", "minimum: 10"):
        assert limit in text, limit
    # What may be left out is not filled with made-up values.
    sync_api.expect(page.get_by_placeholder("width", exact=True)).to_have_value("")
    chosen = [select.input_value() for select in page.locator("table select").all()[:4]]
    assert chosen == ["NONE", "", "", "crop"]
    for answer in ("1050625087", "cfg_scale: 40 is not in 0..35", '"data": null'):
        assert answer in text, answer
    assert visit.complaints == []
    assert visit.asked_hosts == {"127.0.0.1"}
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder) / "docs.png", full_page=True)


def test_both_key_headers_are_offered(visit: Visit) -> None:
    visit.page.locator(".auth-wrapper .authorize").click()
    shown = visit.page.locator(".dialog-ux").inner_text()
    assert "Authentication" in shown
    assert "Authorization" in shown


def enter_the_key(visit: Visit) -> None:
    page = visit.page
    page.locator(".auth-wrapper .authorize").click()
    page.locator(".dialog-ux .auth-container input").first.fill("the-key")
    page.locator(".dialog-ux .auth-btn-wrapper .authorize").first.click()
    page.locator(".dialog-ux .btn-done").first.click()


@pytest.mark.slow("browser")
def test_a_key_is_forgotten_with_the_page(visit: Visit) -> None:
    page = visit.page
    # As an earlier version of the page left it.
    page.evaluate("localStorage.setItem('authorized', 'the-key')")
    page.reload()
    page.locator(".opblock-post").first.wait_for()
    enter_the_key(visit)
    page.locator(".auth-wrapper .authorize.locked").wait_for()
    storage = "JSON.stringify([localStorage, sessionStorage]) + document.cookie"
    assert "the-key" not in page.evaluate(storage)
    page.reload()
    page.locator(".auth-wrapper .authorize.unlocked").wait_for()
    assert visit.complaints == []


@pytest.mark.slow("browser")
def test_the_page_runs_no_script_but_the_servers(visit: Visit) -> None:
    ran = visit.page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.injected = true";
            document.body.append(script);
            return Boolean(window.injected);
        }"""
    )
    assert not ran
    assert any("Content Security Policy" in complaint for complaint in visit.complaints)


def test_a_request_can_be_made_from_the_page(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    picture = tmp_path / "init_image.png"
    picture.write_bytes(file_of(gradient(320, 320)))
    enter_the_key(visit)
    open_form(visit)
    page.locator('input[type="file"]').first.set_input_files(picture)
    # The stub behind this page takes the prompt as seconds to wait.
    page.get_by_placeholder("prompt", exact=True).fill("0")
    page.locator(".execute").click()
    answer = page.locator(".live-responses-table tr.response .response-col_description").first
    answer.wait_for()
    text = answer.inner_text()
    assert '"message": "success"' in text, text[:2000]
    assert '"image": "iVBORw0' in text
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder) / "docs-answer.png", full_page=True)
    assert visit.complaints == []
    assert visit.asked_hosts == {"127.0.0.1"}
