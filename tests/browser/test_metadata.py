"""Settings read from pictures of five programs, in three formats; what is not taken is named."""

from __future__ import annotations

import io
import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.browser.test_client import in_node
from tests.browser.visitor import QUICK, Visitor, expect
from tests.server.pictures import gradient
from tests.server.server_process import ROOT, ServerProcess

A1111 = """a red house, <lora:detail:0.8>
on grass, é 雪
Negative prompt: blurry: very,
ugly
Steps: 60, Sampler: DPM++ 2M Karras, CFG scale: 6.5, Seed: 4294967296, Size: 500x768, \
Model hash: abc, Model: "some, model", Denoising strength: 0.6, Hires upscale: 2, \
Version: v1.10"""
FOOOCUS = {
    "prompt": "a cat",
    "negative_prompt": "dog",
    "steps": 30,
    "guidance_scale": 4.0,
    "sampler": "euler_ancestral",
    "scheduler": "karras",
    "seed": "123456",
    "resolution": "(896, 1152)",
    "loras": [["x", 1]],
}
INVOKEAI = {
    "positive_prompt": "a tree",
    "negative_prompt": "",
    "seed": 77,
    "steps": 25,
    "cfg_scale": 7.5,
    "scheduler": "dpmpp_2m_k",
    "width": 512,
    "height": 640,
    "strength": 0.7,
    "model": {"name": "dreams"},
}
COMFYUI = """{"3": {"class_type": "KSampler", "inputs": {"seed": 99, "steps": 20, "cfg": 8.0,
 "sampler_name": "dpmpp_2s_ancestral", "scheduler": "normal", "denoise": 0.55,
 "positive": ["6", 0], "negative": ["7", 0], "model": ["10", 0]}},
 "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["8", 0], "clip": ["4", 1]}},
 "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "bad"}, "is_changed": [NaN]},
 "8": {"class_type": "PrimitiveString", "inputs": {"value": "a boat"}},
 "10": {"class_type": "LoraLoader", "inputs": {}},
 "__proto__": {"class_type": "x", "inputs": {}}}"""

READ = """
import { readFileSync } from "node:fs";
import { textsOf } from "./texts.mjs";
import { settingsIn } from "./writers.mjs";

const said = {};
for (const name of JSON.parse(readFileSync("names.json")))
  said[name] = settingsIn(await textsOf(new Blob([readFileSync(`${name}.bin`)])));
console.log(JSON.stringify(said));
"""


def png(texts: dict[str, str], international: bool = False, zipped: bool = False) -> bytes:
    info = PngInfo()
    for name, text in texts.items():
        if international:
            info.add_itxt(name, text, zip=zipped)
        else:
            info.add_text(name, text, zip=zipped)
    buffer = io.BytesIO()
    gradient(64, 48).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def png_of(*chunks: bytes) -> bytes:
    """Return a PNG with these chunks before its pixels."""
    plain = png({})
    return plain[:33] + b"".join(chunks) + plain[33:]


def exif(entries: list[tuple[int, int, int]], more: bytes = b"") -> bytes:
    """Return EXIF of one folder, of `(tag, length, value)`, and what follows it."""
    folder = b"".join(struct.pack("<HHII", tag, 7, *rest) for tag, *rest in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + folder + more


def read_in_node(files: dict[str, bytes], folder: Path) -> dict[str, Any]:
    """Return the settings that the page's reader finds in files, by their names."""
    for module in ("texts", "writers"):
        source = ROOT / "server" / "web" / "page" / "metadata" / f"{module}.js"
        shutil.copy(source, folder / f"{module}.mjs")
    for name, content in files.items():
        (folder / f"{name}.bin").write_bytes(content)
    (folder / "names.json").write_text(json.dumps(list(files)))
    return in_node(READ, "", folder)


def with_comment(text: str, file_format: str, encoding: str = "utf-16be") -> bytes:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + text.encode(encoding)
    buffer = io.BytesIO()
    gradient(64, 48).save(buffer, file_format, exif=exif)
    return buffer.getvalue()


def with_make(text: str) -> bytes:
    exif = Image.Exif()
    exif[0x0110] = text
    buffer = io.BytesIO()
    gradient(64, 48).save(buffer, "WEBP", exif=exif)
    return buffer.getvalue()


def drop(visitor: Visitor, content: bytes, name: str = "in.png") -> Any:
    """Drop a file onto the middle of the page; returns what is said of its settings."""
    visitor.page.evaluate(
        """([bytes, name]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([Uint8Array.from(bytes)], name));
            document.getElementById("prompt").dispatchEvent(new DragEvent(
                "drop", {dataTransfer: transfer, bubbles: true, cancelable: true}));
        }""",
        [list(content), name],
    )
    visitor.page.locator("#stage-note", has_text=name).wait_for()
    return visitor.page.locator("#found-settings")


def use(visitor: Visitor, button: str) -> dict[str, str]:
    visitor.page.locator("#found-settings").get_by_role("button", name=button, exact=True).click()
    return dict(
        visitor.page.evaluate(
            """() => Object.fromEntries([...document.querySelectorAll("#form [id]")]
                .filter(e => "value" in e).map(e => [e.id, e.value]))"""
        )
    )


@pytest.fixture
def visitor(visit: Callable[..., Visitor], real_server: ServerProcess) -> Visitor:
    return visit(real_server.url)


@pytest.mark.slow("browser")
@pytest.mark.parametrize(
    "content",
    [
        png({"parameters": A1111}, international=True),
        png({"parameters": A1111}, international=True, zipped=True),
        with_comment(A1111, "JPEG"),
        with_comment(A1111, "JPEG", "utf-16le"),
        with_comment(A1111, "WEBP"),
    ],
    ids=["iTXt", "iTXt deflated", "JPEG", "JPEG, the other order", "WebP"],
)
def test_a1111(visitor: Visitor, content: bytes) -> None:
    said = drop(visitor, content)
    visitor.fill(prompt="before")
    values = use(visitor, "All")
    assert values["prompt"] == "a red house, <lora:detail:0.8>\non grass, é 雪"
    assert values["negative_prompt"] == "blurry: very,\nugly"
    assert (values["steps"], values["cfg_scale"], values["image_strength"]) == ("50", "6.5", "0.4")
    assert (values["sampler"], values["width"], values["height"]) == ("K_DPMPP_2M", "512", "768")
    assert values["seed"] == ""
    text = said.inner_text()
    for part in (
        "Steps 60 became 50",
        "Seed 4294967296 is not from 1",
        "karras schedule",
        "Width 500 became 512",
        "Not taken: Hires upscale",
        "model some, model",
        "<lora:",
    ):
        assert part in text, part
    visitor.page.locator("#undo-settings").click()
    expect(visitor.page.locator("#prompt")).to_have_value("before")
    expect(visitor.page.locator("#steps")).to_have_value("30")


@pytest.mark.slow("browser")
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            png({"parameters": json.dumps(FOOOCUS), "fooocus_scheme": "fooocus"}),
            ("a cat", "dog", "30", "4", "K_EULER_ANCESTRAL", "123456", "896", "1152", "0.35"),
        ),
        (
            png({"invokeai_metadata": json.dumps(INVOKEAI)}, zipped=True),
            ("a tree", "", "25", "7.5", "K_DPMPP_2M", "77", "512", "640", "0.3"),
        ),
        (
            png({"prompt": COMFYUI}),
            ("a boat", "bad", "20", "8", "K_DPMPP_2S_ANCESTRAL", "99", None, None, "0.45"),
        ),
        (
            with_make("prompt:" + COMFYUI),
            ("a boat", "bad", "20", "8", "K_DPMPP_2S_ANCESTRAL", "99", None, None, "0.45"),
        ),
    ],
    ids=["Fooocus", "InvokeAI", "ComfyUI", "ComfyUI, WebP"],
)
def test_other_programs(visitor: Visitor, content: bytes, expected: tuple[str | None, ...]) -> None:
    said = drop(visitor, content)
    values = use(visitor, "All")
    names = ("prompt", "negative_prompt", "steps", "cfg_scale", "sampler", "seed", "width")
    for name, value in zip((*names, "height", "image_strength"), expected, strict=True):
        assert value is None or values[name] == value, name
    if b"LoraLoader" in content:
        expect(said).to_contain_text("Not taken: LoraLoader")


def test_our_own_picture_comes_back_exactly(visitor: Visitor) -> None:
    visitor.sample()
    visitor.fill(negative_prompt="rain, snow", sampler="K_EULER_ANCESTRAL", **QUICK)
    visitor.generate()
    visitor.result()
    with visitor.page.expect_download() as coming:
        visitor.page.locator("#download").click()
    content = Path(coming.value.path()).read_bytes()
    seed = visitor.seed_shown()
    visitor.page.locator("#reset").click()
    visitor.fill(prompt="other", seed="5")
    drop(visitor, content, "ours.png")
    expect(visitor.page.locator("#found-settings")).to_be_visible()
    # This model made it, so it is none that it may not understand.
    expect(visitor.page.locator("#picture-note")).to_be_hidden()
    values = use(visitor, "All but the seed")
    assert (values["prompt"], values["seed"]) == ("a red house on snow", "5")
    values = use(visitor, "All")
    assert (values["seed"], values["steps"]) == (seed, "10")
    assert (values["negative_prompt"], values["sampler"]) == ("rain, snow", "K_EULER_ANCESTRAL")
    assert (values["image_strength"], values["width"]) == ("0.5", "320")


def test_a_hostile_text_stays_text(visitor: Visitor) -> None:
    evil = "<img src=x onerror='window.evil=1'><script>window.evil=1</script>"
    line = f"Steps: {evil}, Sampler: constructor, CFG scale: 1e999, Seed: __proto__, Size: 1x1"
    said = drop(visitor, png({"parameters": f"{evil}\nNegative prompt: {evil}\n{line}"}))
    values = use(visitor, "All")
    assert values["prompt"] == evil
    assert (values["steps"], values["sampler"], values["seed"]) == ("30", "", "")
    expect(said.locator("img, script")).to_have_count(0)
    expect(said).to_contain_text("Sampler constructor is none")
    broken = png({"parameters": A1111})[:200] + b"\xff" * 40
    assert not drop(visitor, png({"prompt": '{"a": [' * 3000}), "deep.png").is_visible()
    visitor.page.locator("#file").set_input_files(
        {"name": "broken.png", "mimeType": "image/png", "buffer": broken}
    )
    visitor.page.locator("#picture-note", has_text="it may be damaged").wait_for()
    # What would take the square of its length to read, and what swells to gigabytes.
    drop(visitor, png({"parameters": "a cat\nSteps: 20, " + "a a " * 100_000}), "long.png")
    zeros = "\0" * 3_000_000
    bomb = png({f"key{number}": zeros for number in range(60)}, zipped=True)
    drop(visitor, bomb, "bomb.png")
    visitor.page.locator("#stage-note", has_text="bomb.png").wait_for()
    assert visitor.page.evaluate("window.evil") is None
    assert visitor.complaints == []


def test_what_would_take_the_square_of_its_length_does_not(tmp_path: Path) -> None:
    """Each of these took minutes to hours; a process that is not done in two is killed."""
    comment = b"ASCII\0\0\0a cat\nSteps: 20, Seed: 7, CFG scale: 6".ljust(1_000_000, b"\0")
    entries = [(0x8769, 1, 8)] * 400 + [(0x9286, len(comment), 10 + 12 * 900)] * 500
    zeros = b"a" + b"\0" * 3_000_000 + b"a"
    files = {
        "escaped": png_of(chunk(b"tEXt", b'parameters\0{"' + b'\\"' * 500_000)),
        "quoted": png_of(chunk(b"tEXt", b"parameters\0{" + b'"\\' * 500_000)),
        "zeros": png_of(chunk(b"eXIf", exif([(0x010F, len(zeros), 22)], zeros))),
        "folders": png_of(chunk(b"eXIf", exif(entries, comment))),
    }
    said = read_in_node(files, tmp_path)
    assert (said["folders"]["prompt"], said["folders"]["seed"]) == ("a cat", "7")
    assert [said[name] for name in files if name != "folders"] == [None] * 3


def test_a_damaged_part_is_left_alone(tmp_path: Path) -> None:
    good = chunk(b"tEXt", b"parameters\0a cat\nSteps: 20, Seed: 7, CFG scale: 6")
    comment = b"ASCII\0\0\0a cat\nSteps: 20, Seed: 7, CFG scale: 6"
    lost = exif([(0x9286, len(comment), 34), (0x8769, 1, 1 << 30)], comment)
    bad = {
        "exif": chunk(b"eXIf", b"II*\0\x08\0\0\0\xff\xff"),
        "deflated": chunk(b"zTXt", b"other\0\0no deflate at all"),
        "cut": chunk(b"iTXt", b"other\0\1\0\0\0" + zlib.compress(b"text" * 99)[:9]),
        "swollen": chunk(b"zTXt", b"other\0\0" + zlib.compress(b" " * 5_000_000)),
        "same name": chunk(b"zTXt", b"parameters\0\0no deflate"),
    }
    files = {f"{name} before": png_of(each, good) for name, each in bad.items()}
    files |= {f"{name} after": png_of(good, each) for name, each in bad.items()}
    files["folder that is not there"] = png_of(chunk(b"eXIf", lost))
    for name, settings in read_in_node(files, tmp_path).items():
        assert settings is not None, name
        assert (settings["prompt"], settings["seed"]) == ("a cat", "7"), name


def test_a_graphs_link_to_no_node(tmp_path: Path) -> None:
    graph = {"3": {"inputs": {"positive": [{"toString": 1}, 0], "steps": 20, "seed": [["3"], 0]}}}
    settings = read_in_node({"graph": png({"prompt": json.dumps(graph)})}, tmp_path)["graph"]
    assert settings == {"writer": "ComfyUI", "rest": {}, "steps": 20}
