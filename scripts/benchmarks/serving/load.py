"""The load generator: sends what is due when it is due, whatever has been answered.

It runs in a process of its own (``python -m scripts.benchmarks.serving.load``): a `Plan` on
standard input, a `Record` on standard output, both JSON.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
import struct
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx2

PATH = "/api/generate/basic/imageToImage"
_PNG_HEAD = 24
"""Bytes of a PNG up to its width and height."""


@dataclass(frozen=True)
class Planned:
    """A request that is due ``at`` seconds after the start; its picture is base64."""

    at: float
    fields: dict[str, str]
    picture: str


@dataclass(frozen=True)
class Plan:
    """``probes`` GETs of ``probe_path`` at ``probe_rate`` a second run beside the requests.

    With ``clients`` the loop is closed: so many requests are outstanding at most, and one is due
    no sooner than the answer before it has come.
    """

    url: str
    requests: list[Planned]
    timeout: float = 300.0
    probes: int = 0
    probe_rate: float = 40.0
    probe_delay: float = 1.0
    probe_path: str = "/health/live"
    clients: int = 0

    @classmethod
    def from_json(cls, text: str) -> Plan:
        data = json.loads(text)
        data["requests"] = [Planned(**planned) for planned in data["requests"]]
        return cls(**data)

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass
class Record:
    """What came of a plan. Latencies are in seconds from the moment a request was due.

    A miss (refused, failed, timed out, or no picture of the right size) is None and has its reason
    in ``misses``. ``seconds`` is from the first due moment to the last answer; ``late`` is the
    longest that a request left after it was due.
    """

    latencies: list[float | None]
    misses: list[str] = field(default_factory=list)
    probes: list[float | None] = field(default_factory=list)
    seconds: float = 0.0
    late: float = 0.0

    @classmethod
    def from_json(cls, text: str) -> Record:
        return cls(**json.loads(text))


async def offer(plan: Plan, client: httpx2.AsyncClient) -> Record:
    """Run a plan through ``client``, whose base URL is the server's."""
    record = Record([None] * len(plan.requests))
    started = time.perf_counter()
    clients = asyncio.Semaphore(plan.clients or max(1, len(plan.requests)))

    async def ask(index: int, planned: Planned, picture: bytes) -> None:
        due = started + planned.at
        await asyncio.sleep(due - time.perf_counter())
        async with clients:
            if plan.clients:
                due = max(due, time.perf_counter())
            await send(index, planned, picture, due)

    async def send(index: int, planned: Planned, picture: bytes, due: float) -> None:
        record.late = max(record.late, time.perf_counter() - due)
        try:
            response = await client.post(
                PATH, data=planned.fields, files={"init_image": ("init.png", picture)}
            )
            ended = time.perf_counter()
            problem = what_is_wrong(response, planned.fields)
        except httpx2.HTTPError as error:
            problem = type(error).__name__
        if problem:
            record.misses.append(problem)
            return
        record.latencies[index] = ended - due
        record.seconds = max(record.seconds, ended - started)

    async def probe(index: int) -> None:
        due = started + plan.probe_delay + index / plan.probe_rate
        await asyncio.sleep(due - time.perf_counter())
        try:
            response = await client.get(plan.probe_path)
            good = response.status_code == 200
            record.probes[index] = time.perf_counter() - due if good else None
        except httpx2.HTTPError:
            record.probes[index] = None

    record.probes = [None] * plan.probes
    pictures = [base64.b64decode(planned.picture) for planned in plan.requests]
    started = time.perf_counter() + 0.05
    await asyncio.gather(
        *(ask(i, p, pictures[i]) for i, p in enumerate(plan.requests)),
        *(probe(i) for i in range(plan.probes)),
    )
    return record


def what_is_wrong(response: httpx2.Response, fields: dict[str, str]) -> str:
    """Why an answer is a miss; empty for a picture of the size asked for."""
    if response.status_code != 200:
        return f"status {response.status_code}"
    try:
        body = response.json()
        head = base64.b64decode(body["data"]["image"][: _PNG_HEAD // 3 * 4])
        width, height = struct.unpack(">II", head[16:24])
        whole = head.startswith(b"\x89PNG")
    except (ValueError, KeyError, TypeError, struct.error):
        return "no picture in the answer"
    if not whole or (str(width), str(height)) != (fields["width"], fields["height"]):
        return "not the picture that was asked for"
    return ""


def percentile(values: list[float | None], share: float) -> float:
    """The nearest-rank percentile; a miss (None) counts as infinitely late."""
    ordered = sorted(math.inf if value is None else value for value in values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


async def run_plan(plan: Plan) -> Record:
    limits: Any = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx2.AsyncClient(
        base_url=plan.url, timeout=plan.timeout, limits=limits, trust_env=False
    ) as client:
        # The first request of a client imports and connects: not part of anybody's latency.
        await client.get(plan.probe_path)
        return await offer(plan, client)


if __name__ == "__main__":
    record_of_plan = asyncio.run(run_plan(Plan.from_json(sys.stdin.read())))
    json.dump(asdict(record_of_plan), sys.stdout)
