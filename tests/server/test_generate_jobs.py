"""`img2img generate` with many inputs, lists, grids and a server, without a model."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from img2img_client import ImageToImageError
from pipelines.errors import GenerationFailed
from pipelines.request import Pixels
from server.cli.in_process import in_this_process
from server.cli.jobs import Job
from server.cli.main import app
from server.cli.view import half_blocks
from server.images.encode import ImageFormat
from server.images.workers.pool import DecoderPool
from server.img2img.service import FinishedImage
from server.settings import Settings
from tests.clients.fake_server import failing, fake_server, picture_event, picturing, streaming
from tests.server.pictures import file_of, gradient
from tests.server.server_process import ROOT
from tests.server.stub_engine import StubEngine

runner = CliRunner()
LONG = "x" * 300 + ".png"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the pictures in/a.png and in/b.png."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for name in ("a", "b"):
        Path(f"in/{name}.png").write_bytes(file_of(gradient(64, 48)))
    return tmp_path


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that were done; each gives back its input. A prompt `fail` fails."""
    jobs: list[Job] = []

    async def make(_: object, job: Job, observer: object) -> FinishedImage:
        jobs.append(job)
        if job.texts["prompt"] == "fail":
            raise GenerationFailed("generation failed")
        return FinishedImage(job.input.read_bytes(), len(jobs))

    monkeypatch.setattr("server.cli.in_process._Own._make", make)
    return jobs


def test_many_inputs_go_into_a_folder_that_is_made(folder: Path, made: list[Job]) -> None:
    result = runner.invoke(app, ["generate", "in/*.png", "in/a.png", "a cat", "-o", "new/out"])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "new/out/a.png (seed 1)",
        "new/out/b.png (seed 2)",
        "new/out/a-2.png (seed 3)",
    ]
    assert sorted(path.name for path in Path("new/out").iterdir()) == ["a-2.png", "a.png", "b.png"]


class Watching:
    """An observer that wants previews."""

    previews = True

    def stage(self, what: str) -> None:
        pass

    def step(self, step: int, steps: int) -> None:
        pass

    def preview(self, image: Image.Image) -> None:
        pass


@pytest.mark.process
def test_once_the_model_is_there_an_input_is_decoded_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it decides on guidance and previews."""
    engine, decode, decoded = StubEngine(), DecoderPool.decode, []

    async def count(pool: DecoderPool, data: bytes, *rest: Any, **more: Any) -> Pixels | None:
        decoded.append(data)
        return await decode(pool, data, *rest, **more)

    monkeypatch.setattr(DecoderPool, "decode", count)
    load = engine.starter()
    monkeypatch.setattr("server.cli.in_process.load_model", lambda settings, **_: load(settings))
    texts = {"prompt": "a cat", "clip_guidance_preset": "FAST_BLUE"}
    job = Job(Path("in/a.png"), texts, Path("out.png"), ImageFormat.PNG)

    async def make() -> list[int]:
        counts = []
        async with in_this_process(Settings()) as maker:
            for _ in range(2):
                decoded.clear()
                await maker.make(job, Watching())
                counts.append(len(decoded))
        return counts

    before, with_model = asyncio.run(make())
    assert before == 2, "what is wrong with it is said before the model is loaded"
    assert with_model == 1
    assert all(handle.request.previews for handle in engine.handles)


def test_what_is_there_is_skipped_unless_it_is_to_be_made_anew(
    folder: Path, made: list[Job]
) -> None:
    command = ["generate", "in/a.png", "in/b.png", "a cat", "--format", "jpg"]
    Path("out").mkdir()
    Path("out/a.jpg").write_bytes(b"done before")
    result = runner.invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "1 of 2 are there already" in result.stderr
    assert [str(job.output) for job in made] == ["out/b.jpg"]
    assert Path("out/a.jpg").read_bytes() == b"done before"
    assert runner.invoke(app, command).exit_code == 0
    assert len(made) == 1
    assert runner.invoke(app, [*command, "--overwrite"]).exit_code == 0
    assert len(made) == 3


def test_one_input_is_made_anew_and_may_go_into_a_folder(folder: Path, made: list[Job]) -> None:
    Path("out.png").write_bytes(b"of before")
    assert runner.invoke(app, ["generate", "in/a.png", "a cat"]).exit_code == 0
    assert Path("out.png").read_bytes() == Path("in/a.png").read_bytes()
    assert runner.invoke(app, ["generate", "in/a.png", "a cat", "-o", "."]).exit_code == 0
    assert made[1].output == Path("a.png")


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        (["in/a*.png", "-o", "new"], "new/a.png"),
        (["in/a*.png", "-o", "v1.5"], "v1.5/a.png"),
        (["in/a*.png", "-o", "new.png"], "new.png"),
        (["in/a*.png", "-o", "new.png/"], "new.png/a.png"),
        (["in/a.png", "-o", "new/"], "new/a.png"),
        (["in/a*.png"], "out.png"),
    ],
)
def test_a_pattern_that_finds_one_still_writes_into_its_folder(
    folder: Path, made: list[Job], arguments: list[str], written: str
) -> None:
    name, *options = arguments
    result = runner.invoke(app, ["generate", name, "a cat", *options])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{written} (seed 1)\n"
    assert Path(written).is_file()


@pytest.mark.parametrize("list_file", ["jobs.csv", "jobs.jsonl"])
@pytest.mark.parametrize(
    ("output", "written"), [("out", "out/a.png"), ("new.png", "new.png"), ("new/", "new/a.png")]
)
def test_a_list_of_one_still_writes_into_its_folder(
    folder: Path, made: list[Job], list_file: str, output: str, written: str
) -> None:
    Path("jobs.csv").write_text("input,prompt\nin/a.png,a cat\n")
    Path("jobs.jsonl").write_text('{"input": "in/a.png", "prompt": "a cat"}')
    result = runner.invoke(app, ["generate", "--jobs", list_file, "-o", output])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{written} (seed 1)\n"
    assert Path(written).is_file()


def test_a_failure_costs_no_other_picture(folder: Path, made: list[Job]) -> None:
    lines = ({"input": "in/a.png", "prompt": prompt} for prompt in ("a cat", "fail", "a dog"))
    Path("jobs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    result = runner.invoke(app, ["generate", "--jobs", "jobs.jsonl"])
    assert result.exit_code == 1
    assert "a-2.png: generation failed" in result.stderr
    assert result.stdout.splitlines() == ["out/a.png (seed 1)", "out/a-3.png (seed 3)"]


def test_a_picture_that_cannot_be_written_costs_no_other(
    folder: Path, made: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Job.write

    def refuse(job: Job, file: bytes) -> None:
        if job.output.name == "a.png":
            raise ValueError("embedded null byte")
        write(job, file)

    monkeypatch.setattr(Job, "write", refuse)
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    result = runner.invoke(app, ["generate", "in/*.png", "a cat"])
    assert result.exit_code == 1
    assert "a.png: out/a.png: embedded null byte; the picture is in" in result.stderr
    assert result.stdout.splitlines() == ["out/b.png (seed 2)"]
    (kept,) = folder.glob("img2img-*.png")
    assert kept.read_bytes() == Path("in/a.png").read_bytes()


def test_a_csv_of_jobs_with_defaults_of_the_command_line(folder: Path, made: list[Job]) -> None:
    Path("lists").mkdir()
    Path("lists/jobs.csv").write_text(
        "\ufeffinput,prompt,steps,output,mask\n"
        '../in/a.png,"a cat, asleep",20,x/cat.webp,\n'
        "../in/b.png,,,,../in/a.png\n",
        encoding="utf-8",
    )
    result = runner.invoke(
        app, ["generate", "--jobs", "lists/jobs.csv", "--steps", "12", "--seed", "5", "-o", "o"]
    )
    assert result.exit_code == 2
    assert "jobs.csv line 3: prompt: is required" in result.stderr
    assert not made
    Path("lists/jobs.csv").write_text(
        Path("lists/jobs.csv").read_text("utf-8").replace("b.png,,", "b.png,a dog,"), "utf-8"
    )
    result = runner.invoke(
        app, ["generate", "--jobs", "lists/jobs.csv", "--steps", "12", "--seed", "5", "-o", "o"]
    )
    assert result.exit_code == 0, result.output
    first, second = made
    assert first.texts == {"prompt": "a cat, asleep", "steps": "20", "seed": "5"}
    assert (first.output, first.format.value) == (Path("o/x/cat.webp"), "WEBP")
    assert second.texts == {"prompt": "a dog", "steps": "12", "seed": "5"}
    assert second.mask == Path("lists/../in/a.png")


@pytest.mark.parametrize("mark", [";", "\t"])
def test_a_csv_may_have_the_separator_of_other_countries_spreadsheets(
    folder: Path, made: list[Job], mark: str
) -> None:
    rows = [
        ["", "input", "steps", "cfg_scale"],
        ["", "in/a.png", "20", "7,5"],
        ["", "in/b.png", "30", "8"],
    ]
    rows[0][0], rows[1][0], rows[2][0] = "prompt", "a cat, asleep", f'"a{mark} dog"'
    lines = "".join("\r\n" + mark.join(row) for row in rows)
    Path("jobs.csv").write_bytes(f"\ufeff{lines}".encode())
    result = runner.invoke(app, ["generate", "--jobs", "jobs.csv"])
    assert result.exit_code == 0, result.output
    assert [(str(job.input), job.texts) for job in made] == [
        ("in/a.png", {"prompt": "a cat, asleep", "steps": "20", "cfg_scale": "7.5"}),
        ("in/b.png", {"prompt": f"a{mark} dog", "steps": "30", "cfg_scale": "8"}),
    ]


def test_all_that_is_wrong_with_a_list_is_said_before_any_work(
    folder: Path, made: list[Job]
) -> None:
    mask = {"mask": "in/a.png"}
    rows = [
        {"input": "in/b.png", "prompt": "a", **more}
        for more in (
            {"output": "x\0.png"},
            {"output": LONG},
            {"input": LONG},
            {"output": str(folder / "in/b.png")},
            {"output": "../in/a.png", **mask},
        )
    ]
    Path("bad.jsonl").write_text(
        '{"input": "in/none.png", "prompt": "a"}\n\n'
        '{"prompt": "a", "size": 3, "steps": 5}\n'
        "nope\n"
        "[1]\n" + "[" * 100_000 + "\n" + "\n".join(map(json.dumps, rows))
    )
    result = runner.invoke(app, ["generate", "--jobs", "bad.jsonl"])
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "bad.jsonl line 1: in/none.png: there is no such file",
        "bad.jsonl line 3: size is no field",
        "bad.jsonl line 3: input: is required",
        "bad.jsonl line 3: steps: 5 is not in 10..50",
        "bad.jsonl line 4: is no JSON: Expecting value: line 1 column 1 (char 0)",
        "bad.jsonl line 5: is no JSON object",
        "bad.jsonl line 6: is no JSON: nested too deeply",
        f"bad.jsonl line 9: {LONG}: File name too long",
        "bad.jsonl line 7: output: out/x\\x00.png cannot be written: embedded null byte",
        f"bad.jsonl line 8: output: out/{LONG} cannot be written: File name too long",
        f"bad.jsonl line 10: output: {folder}/in/b.png is an input; name another",
        "bad.jsonl line 11: output: out/../in/a.png is a mask; name another",
    ]
    assert not made


def test_a_bad_csv_is_told_by_its_columns_and_the_lines_where_rows_begin(
    folder: Path, made: list[Job]
) -> None:
    Path("bad.csv").write_text(
        "input,prompt,,size,prompt\n"
        "in/none.png,a\n"
        'in/a.png,"a\ncat",,,,6\n'
        'in/a.png,"a"b\n'
        "\n"
        'in/a.png,"never closed\n'
        "in/b.png,a\n"
    )
    result = runner.invoke(app, ["generate", "--jobs", "bad.csv"])
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "bad.csv line 1: column 3 has no name",
        "bad.csv line 1: size is no field",
        "bad.csv line 1: prompt: more than one column has this name",
        "bad.csv line 2: in/none.png: there is no such file",
        "bad.csv line 3: has more values than the head has names",
        "bad.csv line 5: is no CSV: ',' expected after '\"'",
        "bad.csv line 7: a quote is not closed",
    ]
    Path("bad.csv").write_text("input,prompt\n" + "none.png,a\n" * 150)
    lines = runner.invoke(app, ["generate", "--jobs", "bad.csv"]).stderr.splitlines()
    assert (len(lines), lines[-1]) == (101, "and 50 more")
    assert not made


def test_a_list_may_have_any_character_in_a_prompt_and_any_bytes_in_a_name(
    folder: Path, made: list[Job]
) -> None:
    name = os.fsdecode(b"\xe9" + b"x" * 250 + b".png")
    Path("in/a.png").rename(folder / name)
    lines = [json.dumps({"input": name, "prompt": "a"})]
    lines += [json.dumps({"input": "in/b.png", "prompt": "a\u2028cat"}, ensure_ascii=False)]
    Path("jobs.jsonl").write_text("\n".join(lines), "utf-8")
    result = runner.invoke(app, ["generate", "--jobs", "jobs.jsonl"])
    assert result.exit_code == 0, result.output
    assert [job.texts["prompt"] for job in made] == ["a", "a\u2028cat"]
    assert Path("out", name).exists()
    assert result.stdout.splitlines() == [
        f"out/\\udce9{'x' * 250}.png (seed 1)",
        "out/b.png (seed 2)",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a.png"], "give INPUT... and PROMPT, or --jobs"),
        (["none*.png", "a"], "none*.png: there is no such file"),
        (["in", "a"], "in: is a folder; name its pictures: in/*"),
        (["in/*.png", "a", "-o", "x.png"], "--output: x.png: name a folder, for more than one"),
        (["in/*.png", "a", "--steps", "5"], "steps: 5 is not in 10..50"),
        (["in/a.png", "a", "-o", "in"], "--output: in/a.png is an input; name another"),
        (["in/*.png", "a", "-o", "in"], "--output: in/b.png is an input; name another"),
        (["in/a.png", "a", "-o", "link.png"], "--output: link.png is an input; name another"),
        (["in/b.png", "a", "--mask", "in/a.png", "-o", "in/a.png"], "in/a.png is a mask; name"),
        (["in/a.png", "a", "--grid", "in/a.png"], "--grid: in/a.png is an input; name another"),
        (["in/a.png", "a", "--grid", "out.png"], "--grid: out.png is a picture of its own"),
        (
            ["in/a.png", "a", "-o", "new"],
            "new has none of the suffixes .png, .jpg, .jpeg, .webp; end it with / for a folder\n",
        ),
        (["in/a.png", "a", "-o", " "], "it is blank; name a file or a folder"),
        ([LONG, "a"], f"{LONG}: there is no such file"),
        (["in/a.png", "a", "-o", LONG], f"{LONG} cannot be written: File name too long"),
        (["in/*.png", "a", "-o", LONG[:300]], "cannot be made: File name too long"),
        (["in/a.png", "a", "--grid", "g.jpg"], "--grid: g.jpg has not the suffix .png"),
        (["in/a.png", "a", "--jobs", "in/a.png"], "give INPUT... or --jobs, not both"),
        (["--jobs", "empty.csv"], "empty.csv: holds no job"),
        (
            ["--jobs", "twice.csv"],
            "twice.csv line 3: output: out/x.png is that of",
        ),
        (["--jobs", "long.csv"], "long.csv line 2: has more values than the head has names"),
        (["in/a.png", "a", "--url", "localhost"], "--url: 'localhost' does not start with http"),
        (["in/a.png", "a", "--url", ""], "--url: '' does not start with http"),
        (["in/a.png", "a", "--url", "http://localhost:port"], "--url: 'http://localhost:port': "),
        (["in/a.png", "a", "--url", "http://localhost:99999"], "port is not from 1 to 65535"),
        (["in/a.png", "a", "--url", "http://"], "--url: 'http://' names no host"),
        (["in/a.png", "a", "--url", "http://localhost/?a=b"], "goes on after the path"),
        (
            ["in/a.png", "a", "--url", "http://localhost", "--model", "m", "--dtype", "float32"],
            "--model, --dtype: the server of --url has its own",
        ),
        (["in/a.png", "in/b.png"], "PROMPT: in/b.png is a file; the prompt comes last"),
    ],
)
def test_what_cannot_be_done_exits_with_2(
    folder: Path, made: list[Job], arguments: list[str], said: str
) -> None:
    Path("empty.csv").write_text("input,prompt\n")
    Path("twice.csv").write_text("input,prompt,output\n" + "in/a.png,a,x.png\n" * 2)
    Path("link.png").symlink_to("in/a.png")
    Path("long.csv").write_text("input,prompt\nin/a.png,a,x.png\n")
    result = runner.invoke(app, ["generate", *arguments])
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert not made


@pytest.mark.parametrize("key", ["ключ", "a\nb"])
def test_a_key_that_no_header_can_carry_is_said_to_be_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("IMG2IMG_API_KEY", key)
    result = runner.invoke(app, ["generate", "in/a.png", "a", "--url", "http://localhost:1"])
    assert result.exit_code == 2, result.output
    assert result.stderr.strip() == (
        "IMG2IMG_API_KEY: it has characters that are not printable ASCII"
    )


def test_a_proxy_that_is_none_is_said_to_be_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "odd://nowhere")
    result = runner.invoke(app, ["generate", "in/a.png", "a", "--url", "http://localhost:1"])
    assert result.exit_code == 2, result.output
    assert "proxy" in result.stderr


def test_a_grid_has_every_picture_and_what_differs(folder: Path, made: list[Job]) -> None:
    Path("jobs.csv").write_text(
        "input,prompt,steps\nin/a.png,a cat,10\nin/a.png,a cat,20\nin/a.png,fail,20\n"
    )
    result = runner.invoke(app, ["generate", "--jobs", "jobs.csv", "--grid", "grids/g.png"])
    assert result.exit_code == 1
    assert "grids/g.png (2 of 3 pictures)" in result.stdout
    with Image.open("grids/g.png") as grid:
        assert grid.width > 2 * 64
        assert grid.crop((8, 8, 72, 56)).tobytes() == Image.open("in/a.png").tobytes()
        labels = grid.convert("L").crop((0, 57, grid.width, grid.height))
    low, _ = labels.getextrema()
    assert low < 64


def test_by_a_server_with_the_key_of_the_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMG2IMG_API_KEY", "a-key")
    waits = {"step": 0, "steps": 10, "queue_position": 2}
    runs = {"step": 5, "steps": 10, "queue_position": 0}
    answers = [
        failing(503, "the server is busy", Retry_After="0"),
        streaming(("progress", waits), ("progress", runs), picture_event(7)),
        picturing(8, X_Ignored_Fields="steps"),
    ]  # fmt: skip
    with fake_server(*answers) as server:
        result = runner.invoke(
            app, ["generate", "in/*.png", "a cat", "--url", server.url, "--steps", "10"]
        )
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == ["out/a.png (seed 7)", "out/b.png (seed 8)"]
    assert result.stderr.splitlines() == [
        "a.png: sending",
        "a.png: the server is busy; again in 0 s",
        "a.png: waiting, 2 in the queue",
        "a.png: making",
        "b.png: sending",
        "b.png: steps had no effect on this server",
    ]
    assert all(asked.headers["Authorization"] == "a-key" for asked in server.asked)


@pytest.mark.parametrize(
    ("status", "message", "exit_code", "tried"),
    [
        (400, "prompt: is not taken by this server", 2, 2),
        (401, "no API key", 2, 1),
        (402, "not enough credits", 1, 1),
        (500, "internal error", 1, 2),
    ],
)
def test_what_a_server_refuses(
    folder: Path, status: int, message: str, exit_code: int, tried: int
) -> None:
    with fake_server(*[failing(status, message)] * 2) as server:
        result = runner.invoke(app, ["generate", "in/*.png", "a", "--url", server.url])
    assert result.exit_code == exit_code
    assert f"a.png: {message}" in result.stderr
    assert len(server.asked) == tried
    assert ("1 more were not tried" in result.stderr) == (tried == 1)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("no API key: send it in the Authentication or the Authorization header", "no API key"),
        ("the API key is not known", "the API key is not known"),
        ("whatever a proxy says", "whatever a proxy says"),
    ],
)
def test_a_key_that_is_missing_or_wrong_is_told_by_its_variable(
    folder: Path, told: str, said: str
) -> None:
    with fake_server(failing(401, told)) as server:
        result = runner.invoke(app, ["generate", "in/a.png", "a", "--url", server.url])
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == (
        f"{said}; the key is read from the environment's IMG2IMG_API_KEY"
    )


def test_where_no_server_is_it_is_said_what_starts_one(folder: Path) -> None:
    with fake_server() as server:
        pass
    # The client's tries are its own matter, and take seconds.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("img2img_client.client._Tries.wait", _give_up)
        result = runner.invoke(app, ["generate", "in/a.png", "a", "--url", server.url])
    assert result.exit_code == 1
    assert "no answer; is a server there? `img2img serve` starts one" in result.stderr


def _give_up(*_: object) -> float:
    raise ImageToImageError("no answer")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["in/a.png"], "stopped; nothing was written"),
        (["in/*.png"], "stopped; what was written stays, and the same command goes on from there"),
        (["in/*.png", "--overwrite"], "stopped; what was written stays"),
    ],
)
def test_ctrl_c_is_answered_at_once_and_says_what_there_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    async def make(*_: object) -> FinishedImage:
        signal.raise_signal(signal.SIGINT)
        await asyncio.sleep(60)
        raise AssertionError

    monkeypatch.setattr("server.cli.in_process._Own._make", make)
    # Tests that a shell runs in the background have it ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        result = runner.invoke(app, ["generate", *arguments, "a"])
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.exit_code == 130
    assert result.stderr.splitlines() == ["stopping ...", said]


SLOW = """
import signal, sys, time
import server.cli.in_process as own
from server.cli.main import main
from server.img2img.service import FinishedImage

def wait(*_, **__):
    time.sleep(100)

async def make(_, job, observer):
    observer.stage("making")
    return FinishedImage(job.input.read_bytes(), 7)

signal.signal(signal.SIGINT, signal.default_int_handler)  # It is ignored in a shell's background.
if sys.argv[1] == "make":
    own._Own._make = make
else:
    own.load_model = wait
if sys.argv[1] == "close":
    own._Own.close = wait
sys.argv[1] = "generate"
main()
"""
"""The command, where the model's loading or its end take their time, or its pictures none."""


def started(
    case: str, *arguments: str, stderr: int, stdout: int | None = None
) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SLOW, case, *arguments, "a cat"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, env=environment, encoding="utf-8", stdout=stdout, stderr=stderr
    )


def wait_for(process: subprocess.Popen[str], line: str) -> None:
    assert process.stderr is not None
    seen = []
    for told in process.stderr:
        seen.append(told)
        if line in told:
            return
    raise AssertionError(seen)


def test_ctrl_c_is_answered_while_the_model_loads(folder: Path) -> None:
    process = started("load", "in/a.png", stderr=subprocess.PIPE)
    with process:
        wait_for(process, "loading")
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=30)
    assert told.splitlines() == ["stopping ...", "stopped; nothing was written"]
    assert process.returncode == 130


def test_a_second_ctrl_c_waits_for_nothing(folder: Path) -> None:
    process = started("close", "in/a.png", stderr=subprocess.PIPE)
    with process:
        wait_for(process, "loading")
        process.send_signal(signal.SIGINT)
        wait_for(process, "stopping ...")
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=30)
    assert told.splitlines() == ["stopped"]
    assert process.returncode == 130


@pytest.mark.parametrize("streams", [["stdout"], ["stdout", "stderr"]])
def test_a_reader_that_leaves_costs_no_picture(folder: Path, streams: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | dict.fromkeys(streams, writer)
    with started("make", "in/*.png", "--grid", "grid.png", **pipes) as process:
        os.close(writer)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 0, told
    assert "Traceback" not in (told or "")
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.png", "b.png"]
    assert Path("grid.png").exists()


def test_several_are_asked_for_at_the_same_time(folder: Path) -> None:
    with fake_server(picturing(1), picturing(1)) as server:
        command = ["generate", "in/*.png", "a", "--url", server.url, "--parallel", "4"]
        assert runner.invoke(app, command).exit_code == 0
    assert len(set(server.keys)) == 2


def test_no_more_are_asked_for_than_the_key_has_places(folder: Path) -> None:
    """The others of a long list would be refused for as long as it goes on."""
    both, met = threading.Barrier(2), []

    def make(handler: BaseHTTPRequestHandler) -> None:
        with suppress(threading.BrokenBarrierError):
            met.append(both.wait(1))
        picturing(1)(handler)

    with fake_server(make, make, concurrency=1) as server:
        command = ["generate", "in/*.png", "a", "--url", server.url, "--parallel", "4"]
        assert runner.invoke(app, command).exit_code == 0
    assert not met


def test_a_preview_is_drawn_in_half_blocks() -> None:
    image = Image.new("RGB", (8, 8), "#ff0000")
    image.paste("#0000ff", (0, 4, 8, 8))
    console = Console(force_terminal=True, color_system="truecolor", width=20)
    with console.capture() as shown:
        console.print(half_blocks(image, 4))
    lines = shown.get().strip().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("\x1b[38;2;255;0;0;48;2;")
    assert lines[1].count(";48;2;0;0;255m▀") == 4


def test_shells_complete_options_and_choices() -> None:
    environment = os.environ | {
        "_IMG2IMG_COMPLETE": "complete_bash",
        "COMP_WORDS": "img2img generate --sampler K_EU",
        "COMP_CWORD": "3",
    }
    program = "import sys; sys.argv = ['img2img']; from server.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["K_EULER", "K_EULER_ANCESTRAL"]
