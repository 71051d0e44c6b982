"""Where the server listens and what it says: address, proxies, logs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from server.settings.base import Choice, StringList, Subject


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

    log_level: Annotated[Literal["debug", "info", "warning", "error"], Choice] = Field(
        "info", description="Least severe level that is logged."
    )
    log_format: Annotated[Literal["text", "json"], Choice] = Field(
        "text", description="`text` (key=value) or `json`, one line an event, on standard error."
    )

    @field_validator("root_path")
    @classmethod
    def _plain_root_path(cls, path: str) -> str:
        path = path.strip().rstrip("/")
        if path and not path.startswith("/"):
            raise ValueError("does not start with /")
        return path
