"""Where the server listens and what it says: address, proxies, logs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from server.settings.base import StringList, Subject


class ServerSettings(Subject):
    """The address, what stands in front of it, and the log."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")

    cors_origins: StringList = Field(
        (), description="Origins whose pages may call this server from a browser; `*` for any."
    )
    root_path: str = Field(
        "", description="Path prefix a reverse proxy serves this server under, such as `/images`."
    )
    forwarded_allow_ips: StringList = Field(
        (),
        description="Addresses or networks of proxies whose X-Forwarded-For and X-Forwarded-Proto "
        "are believed.",
    )
    errors_as_200: bool = Field(
        False,
        description="Answer failures with HTTP 200, for clients that only read `code`; the true "
        "status is then in X-Status. Health checks keep theirs.",
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe level that is logged."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="`text` (key=value) or `json`, one line an event, on standard error."
    )

    @field_validator("root_path")
    @classmethod
    def _plain_root_path(cls, path: str) -> str:
        path = path.strip().rstrip("/")
        if path and not path.startswith("/"):
            raise ValueError("does not start with /")
        return path

    @field_validator("log_level", "log_format", mode="before")
    @classmethod
    def _lower_log_level(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value
