"""Every setting, in one frozen class that is the only reader of the environment.

Each field is read from `IMG2IMG_` and its name in capitals; what the command line gives wins. The
fields are grouped by subject, a module each.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from server.settings.accounts import AccountSettings
from server.settings.base import ENV_PREFIX, FORM_ALLOWANCE, MIB
from server.settings.engine import EngineSettings
from server.settings.limits import LimitSettings
from server.settings.model import ModelSettings
from server.settings.observability import ObservabilitySettings
from server.settings.renamed import OldNames, environment_name, old_names, renamed_variables
from server.settings.replicas import ReplicaSettings
from server.settings.server import ServerSettings
from server.settings.values import is_loopback

__all__ = [
    "ENV_PREFIX",
    "FORM_ALLOWANCE",
    "MIB",
    "Settings",
    "environment_name",
    "misplaced_key",
    "renamed_variables",
    "unknown_variables",
]


class Settings(
    LimitSettings,
    EngineSettings,
    ReplicaSettings,
    ModelSettings,
    AccountSettings,
    ObservabilitySettings,
    ServerSettings,
):
    """What an operator can choose, the subjects together."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read the constructor's arguments, then the environment, then old names in it."""
        return init_settings, env_settings, OldNames(settings_cls)

    @property
    def compile_folder(self) -> Path:
        """The folder of compiled code."""
        return (self.compile_cache or self.data_dir / "compiled").expanduser()

    @property
    def measures(self) -> bool:
        """Return whether metrics are to be had anywhere."""
        return self.metrics_on_api or self.metrics_listen

    @property
    def metrics_on_api(self) -> bool:
        """Return whether metrics are on the port of the API: on a public one only if asked for."""
        if self.metrics == "auto":
            return self.metrics_port is None and is_loopback(self.host)
        return self.metrics == "on"

    @property
    def metrics_listen(self) -> bool:
        """Return whether metrics have a port of their own."""
        return self.metrics != "off" and self.metrics_port is not None

    def exposure_problem(self) -> str | None:
        """The reason why these settings would open the server to strangers, or None."""
        if self.asks_for_key or self.no_auth or is_loopback(self.host):
            return None
        return (
            f"Refusing to listen on {self.host} without API keys: anyone who reaches this address "
            f"could use the server. Make a key with `img2img keys create NAME`, set "
            f"{ENV_PREFIX}API_KEYS, listen on 127.0.0.1, or give "
            f"--no-auth ({ENV_PREFIX}NO_AUTH=true) if something in front checks who calls."
        )


KEY_OF_CLIENTS = f"{ENV_PREFIX}API_KEY"
"""What the Python client and `img2img generate --url` send, often where a server is set up too."""


def unknown_variables(environment: Mapping[str, str] | None = None) -> list[str]:
    """A line for each `IMG2IMG_` variable that is no setting, with the nearest name."""
    names = os.environ if environment is None else environment
    known = {environment_name(field) for field in Settings.model_fields}
    taken = known | old_names() | {KEY_OF_CLIENTS}
    return [_name_typo(name, known) for name in sorted(names) if _is_unknown(name, taken)]


def misplaced_key(settings: Settings, environment: Mapping[str, str] | None = None) -> str | None:
    """A line if a key is set, but by the clients' variable, and the server asks for none."""
    names = os.environ if environment is None else environment
    keys = [key for name, key in names.items() if name.upper() == KEY_OF_CLIENTS]
    if settings.asks_for_key or settings.no_auth or not any(keys):
        return None
    return (
        f"{KEY_OF_CLIENTS} is what clients send; this server asks for no key: did you mean "
        f"{ENV_PREFIX}API_KEYS?"
    )


def _is_unknown(name: str, known: Iterable[str]) -> bool:
    return name.upper().startswith(ENV_PREFIX) and name.upper() not in known


def _name_typo(name: str, known: Iterable[str]) -> str:
    # Without what all have, which makes any two alike.
    short = {setting.removeprefix(ENV_PREFIX): setting for setting in known}
    near = difflib.get_close_matches(name.upper().removeprefix(ENV_PREFIX), list(short), n=1)
    advice = f"did you mean {short[near[0]]}?" if near else "unset it, or see docs/settings.md"
    return f"{name} is not a setting; {advice}"
