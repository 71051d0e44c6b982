from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from server import __version__
from server.cli import app
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
    assert "IMG2IMG_API_KEYS: Value error, starts with [ but is not a JSON list" in result.output
    assert "secret-1" not in result.output


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


def test_generate_without_its_picture(tmp_path: Path) -> None:
    result = runner.invoke(app, ["generate", str(tmp_path / "none.png"), "a cat"])
    assert result.exit_code == 2


def test_doctor_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMG2IMG_HOST", "0.0.0.0")
    monkeypatch.setenv("IMG2IMG_PROT", "1")
    result = runner.invoke(app, ["doctor", "--model", str(tmp_path / "nothing")])
    assert result.exit_code == 1
    problems = [line for line in result.output.splitlines() if line.startswith("problem ")]
    assert len(problems) == 3
    assert "nothing" in problems[0]
    assert "Refusing to listen on 0.0.0.0" in problems[1]
    assert "IMG2IMG_PROT is not a setting; did you mean IMG2IMG_PORT?" in problems[2]
    assert "threads" in result.output
