"""What every subject of the settings is made of: the environment's names, bounds, lists."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, SecretStr
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from server.settings.values import choice_word, split_list

ENV_PREFIX = "IMG2IMG_"
MIB = 1024 * 1024
FORM_ALLOWANCE = MIB
"""Bytes a body may have beyond its picture: the other fields and the form's own lines."""

# What no operator means, and what clocks, operating systems and arithmetic still take.
MOST_SECONDS = 30 * 24 * 3600
MOST_HOURS = 100 * 366 * 24
MOST_MIB = 1 << 24
MOST_REQUESTS = 1_000_000

Choice = BeforeValidator(choice_word)
"""For a setting that is one of some words."""

StringList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_list)]
SecretList = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(split_list)]


class Subject(BaseSettings):
    """Settings of one subject. Lists are comma separated or JSON."""

    model_config = SettingsConfigDict(
        allow_inf_nan=False,
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        # A value may be a key: an error message must not repeat it.
        hide_input_in_errors=True,
        # `model` is the field's own word for the weights.
        protected_namespaces=(),
    )
