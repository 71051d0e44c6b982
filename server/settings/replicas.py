"""Where the engines are: in this process, one for each device here, or on a cluster of Ray."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from server.settings.base import ENV_PREFIX, Subject

MOST_DEVICES = 64


class ReplicaSettings(Subject):
    """One engine in the server's own process, or replicas that it hands requests to."""

    devices: str = Field(
        "",
        description="Engines on this machine: `all` (one for each CUDA device), or their number "
        "(on a CPU too), each in a process of its own; blank: one, in the server's process.",
    )
    ray_address: str = Field(
        "",
        description="Cluster of Ray whose replicas make the images, `auto` for the one that this "
        "machine is a node of; blank: none. Needs the extra `ray`.",
    )
    replica_patience: float = Field(
        3.0,
        ge=0.5,
        le=600,
        description="Seconds without a word from a replica, while others speak, after which its "
        "requests are done by another.",
    )

    @field_validator("devices", mode="before")
    @classmethod
    def _all_or_a_number(cls, value: object) -> object:
        text = str(value).strip().lower()
        if text in ("", "all") or (text.isdecimal() and 1 <= int(text) <= MOST_DEVICES):
            return text
        raise ValueError(f"is neither 'all' nor a number from 1 to {MOST_DEVICES}")

    @model_validator(mode="after")
    def _one_place(self) -> ReplicaSettings:
        if self.devices and self.ray_address:
            raise ValueError(
                f"{ENV_PREFIX}DEVICES and {ENV_PREFIX}RAY_ADDRESS cannot both be given"
            )
        return self

    @property
    def has_replicas(self) -> bool:
        """Return whether the engines are outside of the server's process."""
        return bool(self.devices or self.ray_address)
