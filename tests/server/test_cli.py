from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.errors import GenerationFailed
from server import __version__
from server.accounts.key_text import is_well_formed
from server.cli.doctor import diagnose
from server.cli.main import app
from server.images.workers.process import Worker
from server.img2img.form import ImageToImageForm
from server.img2img.service import FinishedImage
from server.settings import Settings
from tests.server.pictures import file_of, four_corners

runner = CliRunner()


def test_version() -> None:
    result = runner.invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.output == f"img2img-server {__version__}\n"


@pytest.mark.parametrize("command", ["serve", "generate", "doctor"])
def test_help(command: str) -> None:
    result = runner.invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "--model" in result.output


def test_an_open_address_without_keys_exits_with_2() -> None:
    result = runner.invoke(app, ["serve", "--host", "0.0.0.0"])
    assert result.exit_code == 2
    assert "Refusing to listen on 0.0.0.0 without API keys" in result.output
    assert "IMG2IMG_API_KEYS" in result.output
    assert "--no-auth" in result.output


def test_a_bad_option_exits_with_2_and_names_it() -> None:
    result = runner.invoke(app, ["serve", "--port", "70000", "--log-level", "loud"])
    assert result.exit_code == 2
    assert "IMG2IMG_PORT: Input should be less than or equal to 65535" in result.output
    assert "IMG2IMG_LOG_LEVEL" in result.output


def test_a_bad_variable_exits_with_2_without_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMG2IMG_API_KEYS", '["secret-1"')
    result = runner.invoke(app, ["serve"])
    assert result.exit_code == 2
    assert "IMG2IMG_API_KEYS: starts with [ but is not a JSON list" in result.output
    assert "secret-1" not in result.output


def test_settings_that_exclude_each_other_exit_with_2(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 1 a service manager would start it again for ever."""
    monkeypatch.setenv("IMG2IMG_RAY_ADDRESS", "auto")
    result = runner.invoke(app, ["serve", "--devices", "all"])
    assert result.exit_code == 2
    both = "IMG2IMG_DEVICES and IMG2IMG_RAY_ADDRESS cannot both be given"
    assert result.output == f"{both}\n"


def test_generate_names_every_bad_option(tmp_path: Path) -> None:
    picture = tmp_path / "in.png"
    picture.write_bytes(file_of(four_corners()))
    options = ["--steps", "5", "--sampler", "X"]
    result = runner.invoke(app, ["generate", str(picture), "a cat", *options])
    assert result.exit_code == 2
    assert "steps: 5 is not in 10..50" in result.output
    assert "sampler: X is not one of" in result.output


def test_generate_refuses_what_is_no_picture(tmp_path: Path) -> None:
    text = tmp_path / "in.png"
    text.write_text("text")
    output = tmp_path / "out.png"
    result = runner.invoke(app, ["generate", str(text), "a cat", "-o", str(output)])
    assert result.exit_code == 2
    assert "init_image: the file is no picture" in result.output
    assert not output.exists()


def test_generate_without_a_decoder_is_no_fault_of_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture, output = tmp_path / "in.png", tmp_path / "out.png"
    picture.write_bytes(file_of(four_corners()))
    monkeypatch.setattr("server.images.workers.process.WORKER", "server.no_such_module")
    result = runner.invoke(app, ["generate", str(picture), "a cat", "-o", str(output)])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "no decoder could be started"
    assert not output.exists()


def test_generate_starts_one_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = 0

    class Counted(Worker):
        def __init__(self) -> None:
            nonlocal started
            started += 1
            super().__init__()

    monkeypatch.setattr("server.images.workers.pool.Worker", Counted)
    picture = tmp_path / "in.png"
    picture.write_bytes(file_of(four_corners()))
    options = ["--model", str(tmp_path / "nothing"), "-o", str(tmp_path / "out.png")]
    assert runner.invoke(app, ["generate", str(picture), "a cat", *options]).exit_code == 1
    assert started == 1


def test_generate_without_its_picture(tmp_path: Path) -> None:
    result = runner.invoke(app, ["generate", str(tmp_path / "none.png"), "a cat"])
    assert result.exit_code == 2


def test_doctor_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMG2IMG_HOST", "0.0.0.0")
    monkeypatch.setenv("IMG2IMG_PROT", "1")
    monkeypatch.setenv("IMG2IMG_MAX_BATCH", "8")
    monkeypatch.setenv("IMG2IMG_API_KEY", "key")
    result = runner.invoke(app, ["doctor", "--model", str(tmp_path / "nothing")])
    assert result.exit_code == 1
    problems = [line for line in result.output.splitlines() if line.startswith("problem ")]
    assert len(problems) == 3
    assert "nothing" in problems[0]
    assert "Refusing to listen on 0.0.0.0" in problems[1]
    assert "IMG2IMG_PROT is not a setting; did you mean IMG2IMG_PORT?" in problems[2]
    assert "threads" in result.output
    assert re.search("(?m)^keys +0; IMG2IMG_API_KEY is what clients send", result.output)
    assert "IMG2IMG_MAX_BATCH is now called IMG2IMG_MAX_RUNNING_REQUESTS" in result.output
    assert result.output.startswith("problem ")
    assert "\x1b" not in result.output


@pytest.mark.parametrize("no_color", ["", "1"])
def test_doctor_is_in_colour_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_color: str
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", no_color)
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        with pytest.raises(SystemExit) as ended:
            app(["doctor", "--model", str(tmp_path / "nothing")])
    written = os.read(ours, 65536).decode()
    os.close(ours)
    assert ended.value.code == 1
    assert ("\x1b[1;31mproblem" in written) is not bool(no_color)
    assert re.sub(r"\x1b\[[\d;]*m", "", written).startswith("problem ")


def test_doctor_says_that_the_port_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = Settings(port=port, model="/nothing")
        said = diagnose(settings).facts["listens"]
    assert said.startswith(f"127.0.0.1:{port}, but not now: port {port} on 127.0.0.1 is in use")
    assert diagnose(settings).facts["listens"] == f"127.0.0.1:{port}"


def test_doctor_counts_keys_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ["doctor", "--model", str(tmp_path / "nothing")]
    assert "accounts   none" in runner.invoke(app, model).output
    monkeypatch.setenv("IMG2IMG_DATABASE_URL", f"sqlite:///{tmp_path}/a.db")
    assert "made at the first start" in runner.invoke(app, model).output
    assert not (tmp_path / "a.db").exists()
    runner.invoke(app, ["keys", "create", "alice"])
    assert "accounts   1 keys in sqlite" in runner.invoke(app, model).output


def test_keys_and_credits_from_the_command_line() -> None:
    nobody = runner.invoke(app, ["keys", "list"])
    assert nobody.exit_code == 1
    assert "there is no key yet" in nobody.output
    limits = ["--rate", "30/minute", "--concurrency", "4"]
    created = runner.invoke(app, ["keys", "create", "alice", "--credits", "12.5", *limits])
    assert created.exit_code == 0, created.output
    key = created.stdout.strip()
    assert is_well_formed(key)
    again = runner.invoke(app, ["keys", "create", "alice"])
    assert again.exit_code == 2
    assert "there is a key named alice already" in again.output
    added = runner.invoke(app, ["credits", "add", "alice", "0.5"])
    assert added.output == "alice: 13.0\n"
    rotated = runner.invoke(app, ["keys", "rotate", "alice", "--grace", "2"])
    assert is_well_formed(rotated.stdout.strip())
    listed = runner.invoke(app, ["keys", "list"]).output
    assert key not in listed
    head, old, new = listed.splitlines()
    assert head.split()[:6] == ["name", "id", "state", "credits", "rate", "concurrency"]
    assert old.split()[0:1] + old.split()[2:6] == ["alice", "expiring", "13.0", "30/minute", "4"]
    assert new.split()[2] == "valid"
    assert runner.invoke(app, ["keys", "revoke", "alice"]).output == "alice: 2 revoked\n"
    audited = runner.invoke(app, ["credits", "audit"])
    assert audited.output == "the ledger agrees with itself\n"
    assert Settings().has_database


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["keys", "create", "a", "--credits", "0.05"], "in steps of 0.1"),
        (["keys", "create", "a", "--credits", "-1"], "in steps of 0.1"),
        (["keys", "create", "a", "--rate", "often"], "not a rate such as"),
        (["keys", "create", "a", "--concurrency", "0"], "--concurrency"),
        (["credits", "add", "a", "x"], "in steps of 0.1"),
    ],
)
def test_bad_values_of_keys_are_named(arguments: list[str], said: str) -> None:
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.output.replace("│", " ").split())


def test_a_database_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMG2IMG_DATABASE_URL", "mysql://a:secret@b/c")
    for command in (["keys", "list"], ["serve"]):
        result = runner.invoke(app, command)
        assert result.exit_code in (1, 2)
        assert "mysql is not supported" in result.output
        assert "secret" not in result.output


@pytest.mark.process
def test_doctor_says_what_guides_and_what_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    output = runner.invoke(app, ["doctor", "--device", "cpu"]).output
    assert "guidance   by CLIP, embedded's own" in output
    assert "safety     off (the model ships no checker)" in output
    monkeypatch.setenv("IMG2IMG_SAFETY", "block")
    monkeypatch.setenv("IMG2IMG_CLIP_MODEL", "none")
    monkeypatch.setenv("IMG2IMG_PROMPT_DENY_LIST", "/nothing/here")
    result = runner.invoke(app, ["doctor", "--device", "cpu"])
    assert result.exit_code == 1
    assert "guidance   none" in result.output
    assert "problem    the model 'embedded' ships no safety checker" in result.output
    assert "problem    the deny list /nothing/here cannot be read" in result.output


@pytest.mark.process
def test_doctor_says_why_there_is_no_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMG2IMG_QUANTIZE", "fp8")
    result = runner.invoke(app, ["doctor", "--device", "cpu"])
    assert result.exit_code == 1
    assert "problem    IMG2IMG_QUANTIZE=fp8 needs a CUDA device" in result.output


def test_doctor_says_what_is_quantised(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchao")
    monkeypatch.setenv("IMG2IMG_QUANTIZE", "int8")
    output = runner.invoke(app, ["doctor", "--device", "cpu"]).output
    assert "quantized  int8, " in output


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("file/out.png", "the folder"),
        ("out.gif", "out.gif has none of the suffixes .png, .jpg, .jpeg, .webp"),
        ("out", "out has none of the suffixes"),
    ],
)
def test_generate_looks_at_its_output_before_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, said: str
) -> None:
    picture = tmp_path / "in.png"
    picture.write_bytes(file_of(four_corners()))
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()

    def fail(*_: object) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setattr("server.cli.run_jobs._maker", fail)
    result = runner.invoke(app, ["generate", str(picture), "a", "-o", str(tmp_path / output)])
    assert result.exit_code == 2
    assert said in result.output.replace("\n", "")


def test_generate_keeps_a_picture_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture, output = tmp_path / "in.png", tmp_path / "out.webp"
    picture.write_bytes(file_of(four_corners()))

    async def made(*_: object) -> FinishedImage:
        output.mkdir()  # from now on no file can have that name
        return FinishedImage(b"the file", 7)

    monkeypatch.setattr("server.cli.in_process._Own._make", made)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    result = runner.invoke(app, ["generate", str(picture), "a", "-o", str(output)])
    assert result.exit_code == 1
    assert "the picture is in" in result.output
    (kept,) = tmp_path.glob("img2img-*.webp")
    assert kept.read_bytes() == b"the file"


def test_generate_says_every_failure_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = tmp_path / "in.png"
    picture.write_bytes(file_of(four_corners()))

    async def fail(*_: object) -> FinishedImage:
        raise GenerationFailed("generation failed: OutOfMemoryError")

    monkeypatch.setattr("server.cli.in_process._Own._make", fail)
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, ["generate", str(picture), "a"])
    assert result.exit_code == 1
    assert result.output == "generation failed: OutOfMemoryError\n"


def test_help_of_generate_has_the_forms_choices_ranges_and_defaults() -> None:
    wide = {"COLUMNS": "400", "TERMINAL_WIDTH": "400"}
    help_text = " ".join(runner.invoke(app, ["generate", "--help"], env=wide).output.split())
    for name, schema in ImageToImageForm.model_json_schema()["properties"].items():
        if name in ("prompt", "previews"):
            continue
        assert f"--{name.replace('_', '-')}" in help_text
        for choice in schema.get("enum", []):
            assert choice in help_text
        if schema.get("default") not in (None, ""):
            assert f"Default: {schema['default']}." in help_text
        if "minimum" in schema:
            assert f"{schema['minimum']:g} to {schema['maximum']:.10g}." in help_text


@pytest.mark.slow("operations")
@pytest.mark.process
def test_doctor_tells_a_sampler_whose_library_is_missing() -> None:
    """A fresh install once lacked scipy, which K_LMS then took: every request of it failed."""
    without_unipc = (
        "import sys; sys.modules['diffusers.schedulers.scheduling_unipc_multistep'] = None;"
        "sys.argv = ['img2img', 'doctor']; from server.cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", without_unipc], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.startswith("problem    sampler UNIPC fails: ")
    assert done.stdout.count("problem ") == 1


@pytest.mark.process
def test_doctor_names_a_damaged_lora(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    name = "lora_unet_conv_in"
    file = {f"{name}.lora_down.weight": torch.full((1, 4, 3, 3), float("nan"))}
    save_file(
        file | {f"{name}.lora_up.weight": torch.zeros(1, 1, 1, 1)}, tmp_path / "x.safetensors"
    )
    monkeypatch.setenv("IMG2IMG_LORAS", str(tmp_path / "x.safetensors"))
    result = runner.invoke(app, ["doctor", "--device", "cpu"])
    assert result.exit_code == 1
    assert "x.safetensors: lora_unet_conv_in.lora_down.weight holds NaN" in result.output
