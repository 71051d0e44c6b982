"""Settings that have a new name: the old one works for a release, and a line at start says so."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import PydanticBaseSettingsSource

from server.settings.base import ENV_PREFIX

RENAMED = {
    "hot_sizes": "capture_sizes",
    "max_batch": "max_running_requests",
    "exact": "batch_invariant",
}


def environment_name(field: str) -> str:
    """Return the environment variable that a setting is read from."""
    return ENV_PREFIX + field.upper()


def old_names() -> set[str]:
    """Return the environment variables that were a setting's name once."""
    return {environment_name(old) for old in RENAMED}


def renamed_variables(environment: Mapping[str, str] | None = None) -> list[str]:
    """Return a line for each variable that is set by its old name, with the new one."""
    values = _values(environment)
    lines = []
    for old, new in RENAMED.items():
        was, now = environment_name(old), environment_name(new)
        if was in values and now in values:
            lines.append(f"{was} is ignored: {now}, its new name, is set too")
        elif was in values:
            lines.append(f"{was} is now called {now}; the old name will stop working")
    return lines


class OldNames(PydanticBaseSettingsSource):
    """Read settings by their old names; any other source of a setting wins over this one."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return nothing: `__call__` reads all of them at once."""
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return what is set by an old name, by its new one."""
        values = _values(None)
        return {
            new: values[environment_name(old)]
            for old, new in RENAMED.items()
            if environment_name(old) in values
        }


def _values(environment: Mapping[str, str] | None) -> dict[str, str]:
    """The variables that are not empty, by their names in capitals."""
    given = os.environ if environment is None else environment
    return {name.upper(): value for name, value in given.items() if value}
