from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from scripts.paths import ROOT
from server import extras
from server.app import create_app
from server.cli.main import app
from server.errors import ConfigurationError
from server.extras import NEEDS, missing_extras, missing_requirements
from server.settings import Settings

runner = CliRunner()

ASKED = {
    "quantize": ("int8", "img2img-server[quantize]"),
    "traces_endpoint": ("http://127.0.0.1:4318/v1/traces", "img2img-server[tracing]"),
    "ray_address": ("auto", "img2img-server[ray]"),
    "database_url": ("postgresql://u@127.0.0.1/x", "asyncpg"),
    "limits_url": ("redis://127.0.0.1:6379", "redis"),
}


@pytest.mark.parametrize("need", NEEDS, ids=lambda need: need.setting)
def test_a_setting_whose_library_is_missing_is_refused_at_start(
    need: extras.Need, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, install = ASKED[need.setting]
    monkeypatch.setitem(sys.modules, need.module, None)
    monkeypatch.setenv(f"IMG2IMG_{need.setting.upper()}", value)
    with pytest.raises(ConfigurationError, match="which is not installed"):
        create_app(Settings())
    served = runner.invoke(app, ["serve", "--port", "0"])
    assert served.exit_code == 2
    (line,) = served.output.splitlines()
    assert line.startswith(f"IMG2IMG_{need.setting.upper()} needs {need.module}")
    assert line.endswith(f'{sys.executable} -m pip install "{install}"')


def test_what_is_not_asked_for_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    for need in NEEDS:
        monkeypatch.setitem(sys.modules, need.module, None)
    assert missing_extras(Settings()) == []


def test_the_doctor_says_once_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    monkeypatch.setenv("IMG2IMG_QUANTIZE", "int8")
    result = runner.invoke(app, ["doctor", "--device", "cpu"])
    assert result.exit_code == 1
    assert result.output.count('pip install "img2img-server[quantize]"') == 1
    assert result.output.count("problem ") == 1


def test_requirements_that_are_not_met(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing_requirements() == []
    installed = extras.version

    def without_redis(name: str) -> str:
        if name == "redis":
            raise PackageNotFoundError(name)
        return "0.1" if name == "uvicorn" else installed(name)

    monkeypatch.setattr(extras, "version", without_redis)
    redis, uvicorn = sorted(missing_requirements())
    assert redis.startswith(f"redis is not installed: {sys.executable} -m pip install ")
    assert uvicorn.startswith("uvicorn 0.1 is installed, which does not fit: ")


def test_the_pip_line_is_for_the_shells_of_its_system(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, spaced = r"C:\venv\Scripts\python.exe", r"C:\My venv\python.exe"
    assert extras._quoted(spaced) == f"'{spaced}'"
    monkeypatch.setattr(extras, "os", SimpleNamespace(name="nt"))
    assert extras._quoted(plain) == plain
    assert extras._quoted(spaced) == f'"{spaced}"'


def test_the_extras_that_lines_name_exist() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    for need in NEEDS:
        name, _, extra = need.install.partition("[")
        # The first of the extra's distributions brings the module, or the package that it is in.
        first = need.module.partition(".")[0]
        assert f'\n{extra.rstrip("]")} = ["{first}' in project if extra else name in project
