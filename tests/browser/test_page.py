"""The page at `/` in a real browser, against a real server with the model that ships."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pipelines.request import ClipGuidancePreset
from pipelines.scheduler.guidance_cost import MEASURED
from tests.browser.visitor import CLIPBOARD, CUT, GENERATE, QUICK, STREAM, Visitor, expect
from tests.server.pictures import file_of, gradient
from tests.server.server_process import ServerProcess

Visit = Callable[..., Visitor]


@pytest.fixture
def visitor(visit: Visit, real_server: ServerProcess) -> Visitor:
    return visit(real_server.url)


def test_from_a_sample_to_a_picture_and_back_after_a_reload(visitor: Visitor) -> None:
    page = visitor.page
    visitor.screenshot("empty")
    visitor.sample()
    expect(page.locator("#prompt")).to_have_value("a red house on snow")
    visitor.fill(**QUICK)
    page.evaluate(
        """() => {
            const line = document.getElementById("run-text");
            window.seen = [];
            const observer = new MutationObserver(() => window.seen.push(line.textContent));
            observer.observe(line, {childList: true});
        }"""
    )
    page.keyboard.press("Control+Enter")
    page.locator("#result-box.forming").wait_for()
    visitor.screenshot("forming")
    visitor.result()
    visitor.screenshot("done")
    assert any("Step" in text and "of 10" in text for text in page.evaluate("seen"))
    seed = visitor.seed_shown()
    file = visitor.downloaded()
    with Image.open(io.BytesIO(file)) as picture:
        assert picture.size == (320, 320)
        assert f"Seed: {seed}," in picture.info["parameters"]
    expect(page.locator("#strip li")).to_have_count(1)

    page.reload()
    visitor.ready()
    expect(page.locator("#prompt")).to_have_value("a red house on snow")
    expect(page.locator("#steps")).to_have_value("10")
    expect(page.locator("#stage-note")).to_have_text("house.png · 384 × 384")
    page.locator("#strip li button").first.click()
    visitor.result()
    assert visitor.seed_shown() == seed
    assert visitor.downloaded() == file
    assert visitor.complaints == []
    assert visitor.asked_hosts == {"127.0.0.1"}


def test_the_address_may_have_a_query_and_a_fragment(
    visit: Visit, real_server: ServerProcess
) -> None:
    visitor = visit(f"{real_server.url}/?utm=1/x#prompt", permissions=CLIPBOARD)
    visitor.sample()
    visitor.fill(**QUICK)
    visitor.generate()
    visitor.result()
    code = visitor.copied_code("Python")
    assert f'"{real_server.url}{GENERATE}"' in code
    assert f"at {real_server.url}/static/pictures/house.png\n" in code
    assert visitor.complaints == []


def test_seconds_are_told_before_the_first_picture(
    visitor: Visitor, real_server: ServerProcess
) -> None:
    costs = real_server.get("/api/about").json()["data"]["costs"]
    small, large = costs[0], costs[-1]
    assert (small["pixels"], large["pixels"]) == (320 * 320, 1536 * 1536)
    seconds = """async ([costs, pixels, count]) => {
        const { secondsOf } = await import(new URL("static/page/costs.js", document.baseURI));
        return secondsOf(costs, pixels, count);
    }"""
    alone = 10 * small["evaluation"] + small["rest"]
    told = visitor.page.evaluate(seconds, [costs, small["pixels"], 10])
    assert told == pytest.approx(alone)
    between = visitor.page.evaluate(seconds, [costs, 400 * 400, 10])
    assert alone < between < 10 * costs[1]["evaluation"] + costs[1]["rest"]
    expect(visitor.page.locator("#cost")).to_have_text(re.compile(r"\ss$"))
    guided = visitor.page.evaluate(
        """async () => {
            const { Costs } = await import(new URL("static/page/costs.js", document.baseURI));
            const about = (await (await fetch(new URL("api/about", document.baseURI))).json()).data;
            about.costs = [{pixels: 320 * 320, evaluation: 1, rest: 0}];
            const values = {steps: "10", image_strength: "0", sampler: "DDIM"};
            return ["NONE", "SLOW"].map((preset) => new Costs(about, {}).of(
                [{...values, clip_guidance_preset: preset}], {width: 320, height: 320}));
        }"""
    )
    # What is blank has the server's default, what is no number no price.
    blank = visitor.page.evaluate(
        """async () => {
            const at = (file) => import(new URL(`static/page/${file}.js`, document.baseURI));
            const [{ Costs }, { readFields }] = [await at("costs"), await at("schema")];
            const about = (await (await fetch(new URL("api/about", document.baseURI))).json()).data;
            about.costs = [{pixels: 320 * 320, evaluation: 1, rest: 0}];
            const costs = new Costs(about, {credits: {}}, await readFields());
            const rest = {sampler: "", clip_guidance_preset: "NONE"};
            return [["30", "0.35"], ["", ""], ["x", "0.35"]].map(([steps, image_strength]) =>
                costs.of([{steps, image_strength, ...rest}], {width: 320, height: 320}));
        }"""
    )
    assert blank == [blank[0], blank[0], ""]
    assert re.fullmatch(r"\d\.\d\u00a0credits · ~19\u00a0s", blank[0])  # No line ends in them.
    slow = f"~{10 * (1 + MEASURED[ClipGuidancePreset.SLOW]):.0f}\u00a0s"
    assert guided == ["~10\u00a0s", slow]


def test_ranges_and_defaults_are_the_servers(visitor: Visitor, real_server: ServerProcess) -> None:
    document = real_server.get("/openapi.json").json()
    body = document["paths"][GENERATE]["post"]["requestBody"]
    properties = body["content"]["multipart/form-data"]["schema"]["properties"]
    for name, schema in properties.items():
        own = name in ("previews", "seed", "width", "height", "style_preset")
        if own or schema.get("format") == "binary":
            continue
        field = visitor.page.locator(f"#{name}")
        assert field.count() == 1, name
        standard = schema.get("default", "")
        assert field.input_value() == (
            f"{standard:g}" if standard != "" and "minimum" in schema else standard
        ), name
        if "enum" in schema:
            assert set(schema["enum"]) <= set(
                field.evaluate("e => [...e.options].map(o => o.value)")
            )
        elif "minimum" in schema:
            slider = field.locator("xpath=../following-sibling::input[@type='range'][1]")
            assert float(slider.get_attribute("min")) == schema["minimum"], name
            assert float(slider.get_attribute("max")) == schema["maximum"], name
    styles = visitor.page.locator('input[name="style_preset"]').count()
    assert styles == 1 + len(properties["style_preset"]["enum"])


@pytest.mark.slow("browser")
def test_the_slider_is_for_keys_and_screen_readers(visitor: Visitor) -> None:
    visitor.sample()
    visitor.fill(**QUICK)
    visitor.generate()
    visitor.result()
    slider = visitor.page.get_by_role("slider", name="Before and after")
    slider.focus()
    slider.press("ArrowLeft")
    expect(slider).to_have_attribute("aria-valuetext", "51 % result")
    slider.press("PageDown")
    expect(slider).to_have_attribute("aria-valuetext", "61 % result")
    slider.press("Home")
    expect(slider).to_have_attribute("aria-valuetext", "100 % result")
    box = visitor.page.locator("#result-box").bounding_box()
    visitor.page.mouse.click(box["x"] + 0.25 * box["width"], box["y"] + 40)
    assert abs(int(slider.input_value()) - 25) <= 1


def test_a_number_may_have_a_decimal_comma(visitor: Visitor) -> None:
    page = visitor.page
    visitor.sample()
    bodies = visitor.bodies_sent()
    visitor.fill(image_strength="0,95", cfg_scale=" 6,5 ", steps="10")
    expect(page.get_by_label("Image strength, slider")).to_have_value("0.95")
    visitor.generate()
    visitor.result()
    for name, value in ((b"image_strength", b"0.95"), (b"cfg_scale", b"6.5")):
        assert re.search(rb'name="%s"\r\n\r\n%s\r\n' % (name, value), bodies[0])
    # In a whole number it may set off thousands.
    visitor.fill(steps="1,000")
    visitor.generate()
    expect(page.locator("#steps-problem")).to_have_text("1,000 is not a number from 10 to 50")


def test_the_apis_default_size_is_told(visitor: Visitor) -> None:
    visitor.sample("house")
    default = visitor.page.locator("#sizes .chip", has_text="API default")
    expect(default).to_contain_text("384 × 384")
    expect(default).to_have_count(1)


def test_bad_input_is_said_at_its_field(visitor: Visitor) -> None:
    page = visitor.page
    visitor.generate()
    expect(page.locator("#prompt-problem")).to_have_text("Prompt is required")
    expect(page.locator("#prompt")).to_be_focused()
    expect(page.locator("#picture-note")).to_contain_text("A picture is needed")
    visitor.sample()
    visitor.fill(steps="5")
    visitor.generate()
    expect(page.locator("#steps-problem")).to_have_text("5 is not from 10 to 50")
    visitor.screenshot("error")
    # What only the server knows.
    visitor.fill(steps="10", prompt="a " + "BREAK " * 17)
    visitor.generate()
    page.locator("#prompt-problem").filter(has_text="has BREAK 17 times").wait_for()
    expect(page.locator("#prompt")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#prompt")).to_be_focused()


@pytest.mark.slow("browser")
@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("notes.txt", b"hello", "notes.txt is no picture"),
        ("huge.png", file_of(gradient(8, 8))[:16] + b"\0\0\x40\0" * 2, "up to 100 megapixels"),
        ("fat.png", b"\x89PNG" + bytes(20 * 2**20), "up to 20 MiB"),
    ],
    ids=["no picture", "pixels", "bytes"],
)
def test_a_file_is_refused_by_its_head(
    visitor: Visitor, tmp_path: Path, name: str, content: bytes, complaint: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    visitor.page.locator("#file").set_input_files(file)
    visitor.page.locator("#picture-note", has_text=complaint).wait_for()
    expect(visitor.page.locator("#drop")).to_be_visible()


def test_an_upload_meets_the_demo_models_line(visitor: Visitor) -> None:
    file = {"name": "photo.png", "mimeType": "image/png", "buffer": file_of(gradient(90, 60))}
    visitor.page.locator("#file").set_input_files(file)
    note = visitor.page.locator("#picture-note", has_text="it may not understand a photograph")
    # It names a command that is there, in a checkout as in an installation.
    expect(note).to_contain_text(f"{Path('scripts', 'serve')} --model")
    # The size has the picture's shape, near the model's own 320 x 320.
    expect(visitor.page.locator("#cost")).to_contain_text("448 × 320")
    expect(visitor.page.locator("#demo")).to_contain_text("14 things")


def test_cancel_is_seen_at_once_and_the_next_run_starts(visitor: Visitor) -> None:
    page = visitor.page
    visitor.sample()
    visitor.fill(steps="50", image_strength="0")
    page.locator('input[name="size"][value="largest"]').check()
    visitor.generate()
    page.locator("#run-text", has_text="Step").wait_for()
    withdrawn: list[str] = []
    page.on("request", lambda one: "/api/runs/" in one.url and withdrawn.append(one.method))
    milliseconds = page.evaluate(
        """async () => {
            const began = performance.now();
            document.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape"}));
            const button = document.getElementById("generate");
            while (button.hidden) await new Promise(requestAnimationFrame);
            return performance.now() - began;
        }"""
    )
    assert milliseconds < 100
    page.locator("#form-error", has_text="Cancelled; nothing was charged.").wait_for()
    assert withdrawn == ["DELETE"]
    visitor.fill(**QUICK)
    page.locator('input[name="size"][value="native"]').check()
    visitor.generate()
    visitor.result()
    expect(page.locator("#strip li")).to_have_count(1)


@pytest.mark.slow("browser")
def test_use_a_result_as_the_input_and_its_settings(visitor: Visitor) -> None:
    page = visitor.page
    visitor.sample()
    visitor.fill(**QUICK)
    visitor.generate()
    visitor.result()
    seed = visitor.seed_shown()
    page.locator("#use-as-input").click()
    page.locator("#stage-note", has_text=f"img2img-{seed}.png · 320 × 320").wait_for()
    visitor.fill(prompt="something else")
    page.locator("#show-result").click()
    page.locator("#use-settings").click()
    expect(page.locator("#prompt")).to_have_value("a red house on snow")
    expect(page.locator("#seed")).to_have_value(seed)
    # The input that made it is back too, and with it the size.
    expect(page.locator("#stage-note")).to_have_text("house.png · 384 × 384")
    expect(page.locator("#cost")).to_contain_text("320 × 320")
    page.locator("#undo-settings").click()
    expect(page.locator("#prompt")).to_have_value("something else")
    expect(page.locator("#seed")).to_have_value("")
    page.get_by_role("button", name="Redo settings").click()
    expect(page.locator("#seed")).to_have_value(seed)


@pytest.mark.slow("browser")
def test_a_busy_server_is_asked_again_after_its_time(visitor: Visitor) -> None:
    keys = visitor.refuse_once(503, "1", "the server is busy; try again in 1 s")
    visitor.sample()
    visitor.fill(**QUICK)
    visitor.generate()
    visitor.page.locator("#run-text", has_text="Trying again in 1 s").wait_for()
    visitor.result()
    assert len(keys) == 2
    assert keys[0] == keys[1]


@pytest.mark.slow("browser")
def test_a_limit_says_how_long_to_wait(visitor: Visitor) -> None:
    visitor.refuse_once(429, "600", "over the rate of this key")
    visitor.sample()
    visitor.fill(**QUICK)
    visitor.generate()
    said = "Over the rate of this key. The server asks to wait 10 min 0 s."
    expect(visitor.page.locator("#form-error")).to_contain_text(said)


@pytest.mark.slow("browser")
def test_a_run_waits_for_a_model_that_loads(visitor: Visitor) -> None:
    keys = visitor.refuse_once(503, "0.1", "the model is loading", times=6)
    visitor.sample()
    visitor.fill(**QUICK)
    visitor.generate()
    visitor.page.locator("#run-text", has_text="The model is loading. Trying again").wait_for()
    visitor.result()
    assert len(keys) == 7
    assert len(set(keys)) == 1


@pytest.mark.slow("browser")
def test_a_server_that_is_gone_and_comes_back(visitor: Visitor) -> None:
    keys = visitor.fulfil_once(lambda route: route.abort("connectionrefused"))
    visitor.sample()
    visitor.fill(**QUICK)
    visitor.generate()
    visitor.page.locator("#run-text", has_text="No connection to the server").wait_for()
    visitor.result()
    assert keys[0] == keys[1]


@pytest.mark.slow("browser")
def test_a_proxy_that_cuts_the_stream(visitor: Visitor) -> None:
    keys = visitor.fulfil_once(lambda route: route.fulfill(headers=STREAM, body=CUT))
    visitor.sample()
    visitor.fill(**QUICK)
    visitor.generate()
    visitor.page.locator("#run-text", has_text="Trying again").wait_for()
    visitor.result()
    assert keys[0] == keys[1]


@pytest.mark.slow("browser")
def test_a_proxy_that_holds_the_stream_until_its_end(visitor: Visitor) -> None:
    visitor.page.route(
        f"**{GENERATE}", lambda route: route.fulfill(response=route.fetch(timeout=60_000))
    )
    visitor.sample()
    visitor.fill(**QUICK)
    visitor.generate()
    visitor.result()
    expect(visitor.page.locator("#strip li")).to_have_count(1)
