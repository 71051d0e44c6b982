"""What a request may take: time, bytes, words, the work of its image."""

from __future__ import annotations

from pydantic import Field

from server.cpus import picture_places, usable_cpus
from server.settings.base import FORM_ALLOWANCE, MIB, MOST_MIB, MOST_SECONDS, Subject


class LimitSettings(Subject):
    """Bounds of a request, from its first byte to the last of its response."""

    request_timeout: float = Field(
        300.0,
        gt=0,
        le=MOST_SECONDS,
        description="Seconds a request may take from its arrival, its upload included; then it is "
        "answered 504. One that would take longer alone is answered 400, several images that would "
        "together too.",
    )
    run_grace: float = Field(
        60.0,
        ge=0,
        le=MOST_SECONDS,
        description="Seconds that a run whose client gave it an id, as the page does, goes on "
        "though nobody watches it; then it is withdrawn and not charged. 0: runs end with their "
        "connection.",
    )
    grace_period: float = Field(
        30.0,
        ge=0,
        le=MOST_SECONDS,
        description="Seconds that running requests get to finish after SIGTERM.",
    )

    max_upload_mib: float = Field(
        20.0,
        gt=0,
        le=MOST_MIB,
        description="Largest picture file taken, in MiB; a larger one is answered 413.",
    )
    min_upload_rate: float = Field(
        4.0,
        ge=0,
        le=1e9,
        description="KiB/s that an upload has to bring on average; a slower one is answered 408. "
        "0: any.",
    )
    upload_patience: float = Field(
        15.0,
        gt=0,
        le=MOST_SECONDS,
        description="Seconds that an upload may be behind that rate, or stand still.",
    )
    answer_patience: float = Field(
        30.0,
        gt=0,
        le=MOST_SECONDS,
        description="Seconds in which a client has to take some of its answer; then it is cut off.",
    )
    max_bytes_in_flight_mib: float = Field(
        512.0,
        gt=0,
        le=MOST_MIB,
        description="MiB of uploads and unread answers held at the same time, at least one "
        "upload; what would go beyond is answered 503, Retry-After.",
    )
    max_kept_images_mib: float = Field(
        256.0,
        ge=0,
        le=MOST_MIB,
        description="MiB of finished images held for their addresses, an hour, and of answers held "
        "for runs, IMG2IMG_RUN_GRACE at least, where IMG2IMG_LIMITS_URL is no Redis. None goes "
        "before its time: what finds no room is answered in base64, and a run is not kept.",
    )
    max_header_kib: int = Field(
        64,
        ge=1,
        le=MOST_MIB,
        description="KiB that a request's line and headers may have; more is answered 431.",
    )
    header_timeout: float = Field(
        15.0,
        gt=0,
        le=MOST_SECONDS,
        description="Seconds in which a request's headers have to come; then 408.",
    )

    picture_threads: int = Field(
        0,
        ge=0,
        le=64,
        description="Processes that decode uploads, and threads that encode answers; 0: one a CPU "
        "that the server may use, 2 to 8.",
    )
    picture_cpu_seconds: float = Field(
        2.0,
        gt=0,
        le=MOST_SECONDS,
        description="CPU seconds that the decoding of one upload may take, and 0.1 more for each "
        "million pixels beyond 16; then it is answered 400.",
    )
    picture_memory_mib: int = Field(
        600,
        ge=16,
        le=MOST_MIB,
        description="MiB that the decoding of one upload may take above an idle decoder's, and "
        "11.4 more for each million pixels beyond 16; then it is answered 400.",
    )

    max_breaks: int = Field(
        16,
        ge=0,
        le=1_000_000,
        description="Times that BREAK may stand in a prompt or a negative prompt; more is "
        "answered 400.",
    )

    @property
    def picture_places(self) -> int:
        """Pictures that are decoded, and answers that are encoded, at the same time."""
        return self.picture_threads or picture_places(usable_cpus().count)

    @property
    def max_upload_bytes(self) -> int:
        return int(self.max_upload_mib * MIB)

    @property
    def max_bytes_in_flight(self) -> int:
        """Bytes of requests and answers that may be held; the largest request always has room."""
        return max(int(self.max_bytes_in_flight_mib * MIB), self.max_body_bytes)

    @property
    def max_kept_bytes(self) -> int:
        return int(self.max_kept_images_mib * MIB)

    @property
    def max_body_bytes(self) -> int:
        """Bytes of a body with one picture and the form around it."""
        return self.max_upload_bytes + FORM_ALLOWANCE

    @property
    def max_form_bytes(self) -> int:
        """Bytes of the largest form that holds a picture and its mask; no more than may be held."""
        return min(2 * self.max_upload_bytes + FORM_ALLOWANCE, self.max_bytes_in_flight)

    @property
    def max_json_bytes(self) -> int:
        """Bytes of the largest body of an API that takes an image and a mask, as base64 too.

        No more than may be held for all, or it could never be read.
        """
        two_images = 2 * (self.max_upload_bytes * 4 // 3 + 4) + 2 * FORM_ALLOWANCE
        return min(two_images, self.max_bytes_in_flight)
