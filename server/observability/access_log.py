"""The access log: one line a request, when it has ended. No key and no picture is ever in it, and
prompts only where the operator asked for them (`IMG2IMG_LOG_PROMPTS`)."""

from __future__ import annotations

import logging
from typing import Any

from server.observability.request_record import RequestObserver, RequestRecord

access_log = logging.getLogger("server.access")


class AccessLog(RequestObserver):
    """Writes the lines; what is not known of a request is left out of its line."""

    def __init__(self, *, prompts: bool = False) -> None:
        self._prompts = prompts

    def ended(self, record: RequestRecord) -> None:
        """Write the request's line; that of a probe at debug: why one fails has its own, once."""
        fields: dict[str, Any] = {
            "method": record.method,
            "path": record.path,
            "status": record.status,
            "outcome": record.outcome,
            "seconds": round(record.seconds, 4),
            "client": record.client,
            "api": record.api,
            "key": record.key,
            "model": record.model,
            **self._of_generations(record),
            **{f"{stage}_seconds": round(s, 4) for stage, s in record.stage_seconds.items()},
            "replayed": record.replayed or None,
            "credits": None if record.credits is None else record.credits.charged / 10,
            "trace_id": record.trace_id,
        }
        known = {name: value for name, value in fields.items() if value is not None}
        level = logging.DEBUG if record.is_probe else logging.INFO
        access_log.log(level, "request", extra={"fields": known})

    def _of_generations(self, record: RequestRecord) -> dict[str, Any]:
        if not record.generations:
            return {}
        first = record.generations[0]
        fields: dict[str, Any] = {
            "size": f"{first.width}x{first.height}",
            "steps": first.steps,
            "sampler": str(first.sampler),
            "seed": first.seed,
            "asked": len(record.generations),
            "images": record.images,
            "evaluations": record.evaluations,
            "rows_shared": round(record.rows_shared, 2),
        }
        if self._prompts:
            fields["prompt"] = first.prompt
            fields["negative_prompt"] = first.negative_prompt
        return fields
