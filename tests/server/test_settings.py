from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import typer
from pydantic import ValidationError

from models.spec import ModelSpec
from server.cli.shared import USAGE_ERROR, read_settings
from server.errors import ConfigurationError
from server.serve import serve
from server.settings import (
    KEY_OF_CLIENTS,
    Settings,
    environment_name,
    misplaced_key,
    renamed_variables,
    unknown_variables,
)
from server.settings.values import is_loopback


def keys_of(settings: Settings) -> list[str]:
    return [key.get_secret_value() for key in settings.api_keys]


def test_every_setting_is_described_and_has_a_default() -> None:
    Settings()
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert not field.is_required(), name


def test_the_environment_is_read_and_arguments_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMG2IMG_PORT", "9001")
    monkeypatch.setenv("IMG2IMG_MODEL", "owner/name")
    assert Settings().port == 9001
    settings = Settings(port=9002)
    assert (settings.port, settings.model) == (9002, "owner/name")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one", ["one"]),
        ("one, two,", ["one", "two"]),
        ('["one", "t,wo"]', ["one", "t,wo"]),
        ("", []),
    ],
)
def test_keys_are_a_list(monkeypatch: pytest.MonkeyPatch, text: str, expected: list[str]) -> None:
    monkeypatch.setenv("IMG2IMG_API_KEYS", text)
    assert keys_of(Settings()) == expected


def test_lists_of_origins_and_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMG2IMG_CORS_ORIGINS", "https://a.example, https://b.example")
    monkeypatch.setenv("IMG2IMG_FORWARDED_ALLOW_IPS", '["10.0.0.0/8"]')
    settings = Settings()
    assert settings.cors_origins == ("https://a.example", "https://b.example")
    assert settings.forwarded_allow_ips == ("10.0.0.0/8",)


@pytest.mark.parametrize("text", ['["secret-1", "  "]', '["secret-1"', '[["secret-1"]]'])
def test_an_error_in_the_keys_does_not_repeat_them(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("IMG2IMG_API_KEYS", text)
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert "secret-1" not in str(caught.value)


def test_keys_are_not_shown() -> None:
    assert "secret-1" not in repr(Settings(api_keys=("secret-1",)))  # type: ignore[arg-type]


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("port", 70000),
        ("max_queue", 0),
        ("request_timeout", 0),
        ("grace_period", -1),
        ("max_upload_mib", 0),
        ("root_path", "images"),
        ("log_level", "loud"),
        ("no_such_setting", 1),
    ],
)
def test_bad_values_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError):
        Settings(**{field: value})  # type: ignore[arg-type]


def test_root_path_has_no_trailing_slash() -> None:
    assert Settings(root_path="/images/").root_path == "/images"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("192.168.1.2", False),
        ("example.org", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_strangers_are_only_let_in_when_that_is_said() -> None:
    assert Settings().exposure_problem() is None
    assert "IMG2IMG_API_KEYS" in (Settings(host="0.0.0.0").exposure_problem() or "")
    assert Settings(host="0.0.0.0", no_auth=True).exposure_problem() is None
    with_key = Settings(host="0.0.0.0", api_keys="key")  # type: ignore[arg-type]
    assert with_key.exposure_problem() is None
    assert with_key.asks_for_key
    assert not Settings(api_keys="key", no_auth=True).asks_for_key  # type: ignore[arg-type]


def test_misspelt_variables_are_found() -> None:
    environment = {"IMG2IMG_PORT": "1", "IMG2IMG_MODLE": "x", "IMG2IMG_XYZ": "", "OTHER": "y"}
    assert unknown_variables(environment) == [
        "IMG2IMG_MODLE is not a setting; did you mean IMG2IMG_MODEL?",
        # Nothing is near it but by what all settings begin with.
        "IMG2IMG_XYZ is not a setting; unset it, or see docs/settings.md",
    ]
    assert unknown_variables({KEY_OF_CLIENTS: "of the Python client"}) == []


def test_a_key_that_locks_nothing_is_found() -> None:
    said = misplaced_key(Settings(), {KEY_OF_CLIENTS.lower(): "key"}) or ""
    assert said.endswith("this server asks for no key: did you mean IMG2IMG_API_KEYS?")
    with_key = Settings(api_keys="key")  # type: ignore[arg-type]
    for settings in (with_key, Settings(no_auth=True)):
        assert misplaced_key(settings, {KEY_OF_CLIENTS: "key"}) is None
    assert misplaced_key(Settings(), {KEY_OF_CLIENTS: "", "OTHER": "key"}) is None


def test_a_server_says_that_a_key_locks_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(KEY_OF_CLIENTS, "key")
    with pytest.raises(ConfigurationError):  # so that it ends
        serve(Settings(host="0.0.0.0"))
    assert "this server asks for no key" in caplog.text


def test_environment_name() -> None:
    assert environment_name("api_keys") == "IMG2IMG_API_KEYS"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.safetensors", ("a.safetensors", 1.0)),
        ("/models/a.safetensors:0.8", ("/models/a.safetensors", 0.8)),
        ("a.safetensors:-1", ("a.safetensors", -1.0)),
        ("C:\\models\\a.safetensors", ("C:\\models\\a.safetensors", 1.0)),
        ("C:\\models\\a.safetensors:.5", ("C:\\models\\a.safetensors", 0.5)),
        ("/odd:name/a.safetensors", ("/odd:name/a.safetensors", 1.0)),
    ],
)
def test_a_lora_and_its_weight(text: str, expected: tuple[str, float]) -> None:
    assert Settings(loras=(text,)).model_spec.loras == (expected,)


@pytest.mark.parametrize(
    "text", ["a.safetensors:much", "a.safetensors:nan", "a.safetensors:", ":1"]
)
def test_a_lora_whose_weight_is_none(text: str) -> None:
    with pytest.raises(ValidationError, match="is no weight"):
        Settings(loras=(text,))


def test_the_model_that_settings_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMG2IMG_MODEL", "/models/a.safetensors")
    monkeypatch.setenv("IMG2IMG_PREDICTION", "V_Prediction")
    monkeypatch.setenv("IMG2IMG_ZERO_TERMINAL_SNR", "true")
    monkeypatch.setenv("IMG2IMG_EMA", "true")
    monkeypatch.setenv("IMG2IMG_VAE", "/models/taesd")
    monkeypatch.setenv("IMG2IMG_PREVIEW_VAE", "/models/taesd")
    monkeypatch.setenv("IMG2IMG_LORAS", "/l/a.safetensors:0.5, /l/b.safetensors")
    monkeypatch.setenv("IMG2IMG_EMBEDDINGS", "/models/embeddings")
    monkeypatch.setenv("IMG2IMG_QUANTIZE", "INT8")
    assert Settings().model_spec == ModelSpec(
        model="/models/a.safetensors",
        prediction="v_prediction",
        zero_terminal_snr=True,
        ema=True,
        vae="/models/taesd",
        preview_vae="/models/taesd",
        loras=(("/l/a.safetensors", 0.5), ("/l/b.safetensors", 1.0)),
        embeddings="/models/embeddings",
        quantize="int8",
    )
    assert Settings(model="embedded", prediction="auto", ema=False).model_spec.model == "embedded"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("512", "is no size"),
        ("512x", "is no size"),
        ("500x512", "a side is a multiple of 64, 320 to 1536"),
        ("512x2048", "a side is a multiple of 64, 320 to 1536"),
    ],
)
def test_a_capture_size_that_no_request_could_have(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Settings(capture_sizes=("512x512", text))


def test_capture_sizes_are_for_requests_without_one_only_if_that_is_said() -> None:
    settings = Settings(capture_sizes=("512x768", "768X512"))
    assert settings.capture_sizes_in_pixels == ((512, 768), (768, 512))
    assert settings.auto_picture_sizes == ()
    both = Settings(capture_sizes=("512x768",), auto_sizes=True)
    assert both.auto_picture_sizes == ((512, 768),)


def test_a_database_of_keys_asks_for_keys(tmp_path: Path) -> None:
    assert not Settings(data_dir=tmp_path).asks_for_key
    assert Settings(data_dir=tmp_path, host="0.0.0.0").exposure_problem() is not None
    named = Settings(data_dir=tmp_path, host="0.0.0.0", database_url="sqlite:///a.db")  # type: ignore[arg-type]
    assert named.asks_for_key
    assert named.exposure_problem() is None
    made = Settings(data_dir=tmp_path)
    made.accounts_file.touch()
    assert made.asks_for_key
    assert not Settings(data_dir=tmp_path, no_auth=True).asks_for_key


def test_without_a_database_none_is_loaded() -> None:
    """A server on this machine that asks for no key starts as quickly as ever."""
    code = (
        "import sys; from server.app import create_app; from server.settings import Settings; "
        "create_app(Settings()); print([m for m in ('sqlalchemy', 'alembic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


MAY_BE_OFF = [
    name
    for name, field in Settings.model_fields.items()
    if "off"
    in (*get_args(field.annotation), *getattr(field.annotation, "__members__", {}).values())
]


@pytest.mark.parametrize("text", ["off", "OFF", "false", "False", "0"])
@pytest.mark.parametrize("field", MAY_BE_OFF)
def test_every_word_for_off(monkeypatch: pytest.MonkeyPatch, field: str, text: str) -> None:
    monkeypatch.setenv(environment_name(field), text)
    assert getattr(Settings(), field) == "off"


@pytest.mark.parametrize("text", ["on", "true", "1"])
def test_on_is_no_word_of_a_setting_that_has_another(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("IMG2IMG_METRICS", text)
    assert Settings().metrics == "on"
    monkeypatch.setenv("IMG2IMG_SAFETY", text)
    with pytest.raises(ValidationError, match="safety"):
        Settings()


NUMBERS = [
    name for name, field in Settings.model_fields.items() if field.annotation in (int, float)
]


@pytest.mark.parametrize("text", ["inf", "-inf", "nan", "1e300", str(10**20)])
@pytest.mark.parametrize("field", NUMBERS)
def test_a_number_beyond_all_use_is_refused_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], field: str, text: str
) -> None:
    monkeypatch.setenv(environment_name(field), text)
    with pytest.raises(typer.Exit) as stopped:
        read_settings()
    assert stopped.value.exit_code == USAGE_ERROR
    message = capsys.readouterr().err
    assert message.startswith(f"{environment_name(field)}: ")
    assert message.count("\n") == 1


OLD_AND_NEW = [
    ("HOT_SIZES", "CAPTURE_SIZES", "512x768, 768x512", ("512x768", "768x512"), ("320x320",)),
    ("MAX_BATCH", "MAX_RUNNING_REQUESTS", "3", 3, 5),
    ("EXACT", "BATCH_INVARIANT", "true", True, False),
]


@pytest.mark.parametrize(("old", "new", "text", "value", "_other"), OLD_AND_NEW)
def test_an_old_name_works_and_the_new_one_is_said(
    monkeypatch: pytest.MonkeyPatch, old: str, new: str, text: str, value: object, _other: object
) -> None:
    monkeypatch.setenv(f"IMG2IMG_{old}", text)
    assert getattr(Settings(), new.lower()) == value
    assert renamed_variables() == [
        f"IMG2IMG_{old} is now called IMG2IMG_{new}; the old name will stop working"
    ]
    assert unknown_variables() == []


@pytest.mark.parametrize(("old", "new", "text", "_value", "other"), OLD_AND_NEW)
def test_the_new_name_wins_over_the_old_one(
    monkeypatch: pytest.MonkeyPatch, old: str, new: str, text: str, _value: object, other: object
) -> None:
    monkeypatch.setenv(f"IMG2IMG_{old}", text)
    monkeypatch.setenv(
        f"IMG2IMG_{new}", ",".join(other) if isinstance(other, tuple) else str(other)
    )
    assert getattr(Settings(), new.lower()) == other
    assert renamed_variables() == [
        f"IMG2IMG_{old} is ignored: IMG2IMG_{new}, its new name, is set too"
    ]


def test_an_empty_old_name_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMG2IMG_MAX_BATCH", "")
    assert Settings().max_running_requests == 16
    assert renamed_variables() == []


def test_a_bad_value_of_an_old_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMG2IMG_MAX_BATCH", "many")
    with pytest.raises(ValidationError, match="max_running_requests"):
        Settings()
