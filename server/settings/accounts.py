"""Who may come in: keys, credits, rates, and the folder that keeps them."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field, SecretStr, field_validator

from server.key_marker import file_was_made
from server.rates import parse_rate
from server.settings.base import MOST_HOURS, MOST_MIB, MOST_REQUESTS, SecretList, Subject


class AccountSettings(Subject):
    """Keys, credits, rates and answers kept for their Idempotency-Key."""

    api_keys: SecretList = Field(
        (),
        description="Keys that clients may use, without credits, beside those of the database. "
        "Without any, requests are open, which is only allowed on a loopback address.",
    )
    database_url: SecretStr | None = Field(
        None,
        description="Where keys and credits are kept: `sqlite:///PATH` or "
        "`postgresql://USER:PASSWORD@HOST/NAME`. Blank: `accounts.db` in the data folder, used "
        "once `img2img keys create` has made it.",
    )
    data_dir: Path = Field(
        Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share") / "img2img-server",
        description="Folder for what the server keeps, unless it is told another place.",
    )
    credits: bool = Field(
        True, description="Charge credits to the keys of the database; `off` for keys alone."
    )

    answers_mib: float = Field(
        512.0,
        ge=0,
        le=MOST_MIB,
        description="MiB of answers kept for their Idempotency-Key, at most; the oldest go first.",
    )
    answers_hours: float = Field(
        24.0,
        gt=0,
        le=MOST_HOURS,
        description="Hours that an answer is kept for its Idempotency-Key.",
    )

    rate: str = Field(
        "",
        description="Rate of a key that has none of its own, such as `30/minute`; blank: any.",
    )
    concurrency: int = Field(
        0,
        ge=0,
        le=MOST_REQUESTS,
        description="Requests that a key without a number of its own may run at the same time; "
        "0: any.",
    )
    limits_url: SecretStr = Field(
        SecretStr("memory://"),
        description="Where rates are counted: `memory://`, or `redis://HOST:6379` for several "
        "servers.",
    )
    auth_failures: str = Field(
        "30/minute",
        description="Rate of wrong keys from one address, and ten times that from its network "
        "(/24, /64), beyond which it is answered 429; blank: any.",
    )

    no_auth: bool = Field(
        False, description="Ask for no key, whatever the address and whatever keys are set."
    )

    @field_validator("api_keys")
    @classmethod
    def _no_empty_key(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if any(not key.get_secret_value().strip() for key in keys):
            raise ValueError("holds an empty key")
        return tuple(SecretStr(key.get_secret_value().strip()) for key in keys)

    @field_validator("rate", "auth_failures")
    @classmethod
    def _rate(cls, text: str) -> str:
        if text.strip():
            parse_rate(text)
        return text.strip()

    @field_validator("data_dir")
    @classmethod
    def _home(cls, folder: Path) -> Path:
        try:
            return folder.expanduser()
        except RuntimeError as error:  # A user who does not exist.
            raise ValueError(str(error)) from None

    @property
    def asks_for_key(self) -> bool:
        """Return whether a request needs a key."""
        return bool(self.api_keys or self.has_database) and not self.no_auth

    @property
    def accounts_file(self) -> Path:
        """The SQLite file of a server that is told no other database."""
        return self.data_dir.expanduser() / "accounts.db"

    @property
    def accounts_url(self) -> str:
        """The database of keys and credits, whether it is there or not."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.accounts_file}"

    @property
    def has_database(self) -> bool:
        """Return whether there is a database of keys: one that was named or made by `img2img`."""
        return self.database_url is not None or file_was_made(self.data_dir, self.accounts_file)
