"""How the engine runs: acceleration, sizes, memory, requests at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from models.spec import AccelerationMode
from server.settings.base import MOST_MIB, MOST_REQUESTS, MOST_SECONDS, Choice, StringList, Subject
from server.settings.values import split_size


class EngineSettings(Subject):
    """Speed, memory and load of the device."""

    acceleration: Annotated[AccelerationMode, Choice] = Field(
        AccelerationMode.GRAPHS,
        description="`off`, `graphs` (CUDA graphs, forwards of our own), `compile` (CUDA graphs, "
        "the modules compiled for the capture sizes), or `max` (and kernels tried out, which takes "
        "minutes). What the device cannot do is left out.",
    )
    capture_sizes: StringList = Field(
        ("512x512",),
        description="Sizes that are made ready at start, WIDTHxHEIGHT each; others are captured "
        "once they are used often.",
    )
    auto_sizes: bool = Field(
        False,
        description="Give a request that names neither width nor height the capture size whose "
        "shape is nearest to its picture's.",
    )
    compile_cache: Path | None = Field(
        None,
        description="Folder for compiled code, read at start and written after the first one; "
        "blank: `compiled` in the data folder.",
    )
    threads: int = Field(
        0,
        ge=0,
        le=4096,
        description="CPU threads a tensor operation uses; 0: torch's number, but no more than the "
        "process's affinity and its container's quota allow.",
    )

    start_timeout: float = Field(
        900.0,
        ge=1,
        le=MOST_SECONDS,
        description="Seconds that a start may take, downloads, kernels and warm-up included: fetch "
        "a large model by `img2img models pull` first. An engine of `devices` that takes longer is "
        "started anew, and where none has started by then the server ends; a server with the "
        "engine in its own process is not live any more (`/health/live`).",
    )

    memory_limit_mib: int = Field(
        0,
        ge=0,
        le=MOST_MIB,
        description="MiB that the model and its work are planned for, weights included; 0: what "
        "is free on a CUDA device, any on a CPU.",
    )
    vae_tile_above: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="Megapixels above which pictures are encoded and decoded in tiles; 0: where "
        "a whole one would not fit into the memory.",
    )

    max_queue: int = Field(
        64,
        ge=1,
        le=MOST_REQUESTS,
        description="Requests that may wait or run; one more is answered 503, Retry-After.",
    )
    max_running_requests: int = Field(
        16, ge=1, le=1024, description="Requests that run at the same time, at most."
    )

    batch_invariant: bool = Field(
        False,
        description="Make a request's bytes the same alone, in a crowd and after a restart, at the "
        "price of some throughput.",
    )

    @field_validator("capture_sizes")
    @classmethod
    def _sizes_of_the_contract(cls, sizes: tuple[str, ...]) -> tuple[str, ...]:
        for text in sizes:
            split_size(text)
        return sizes

    @property
    def capture_sizes_in_pixels(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of each capture size, in pixels."""
        return tuple(split_size(text) for text in self.capture_sizes)

    @property
    def auto_picture_sizes(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of the sizes to choose from for a request that names none; none: any."""
        return self.capture_sizes_in_pixels if self.auto_sizes else ()
