"""A decoder that does not keep to the protocol: the upload names what it does.

Run as `python -m tests.server.rogue_worker`.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

from server.images.workers.messages import read_message, write_message

SIDE = 320
HONEST, FORGED = b"\x01", b"\x02"

stdin, stdout = sys.stdin.buffer, sys.stdout.buffer


def send(header: bytes, payload: bytes = b"") -> None:
    stdout.write(struct.pack(">IQ", len(header), len(payload)) + header + payload)
    stdout.flush()


def answer(job: dict[str, Any], colour: bytes = HONEST, **other: Any) -> None:
    header = {"job": job.get("job"), "shape": (SIDE, SIDE, 3), "retire": False}
    write_message(stdout, header | other, colour * (SIDE * SIDE * 3))


def forge(_: dict[str, Any]) -> None:
    """An answer for the job to come."""
    answer({}, FORGED)


def closes_its_pipe(_: dict[str, Any]) -> None:
    os.close(1)
    time.sleep(600)


def says_too_much(_: dict[str, Any]) -> None:
    stdout.write(struct.pack(">IQ", 2, 1 << 30) + b"{}")
    stdout.flush()
    time.sleep(600)


def announces_twice(job: dict[str, Any]) -> None:
    for _ in range(2):
        write_message(stdout, {"job": job.get("job"), "pixels": 1})
        read_message(stdin)
    answer(job)


NONSENSE: dict[str, Callable[[dict[str, Any]], None]] = {
    "no JSON": lambda job: (send(b"no JSON"), forge(job))[0],
    "no UTF-8": lambda job: (send(b"\xff\xfe\xfd"), forge(job))[0],
    "no object": lambda job: (send(b"5"), forge(job))[0],
    "an array": lambda job: (send(b"[]"), forge(job))[0],
    "nested": lambda job: (send(b"[" * 60_000), forge(job))[0],
    "nothing in it": lambda job: (send(b"{}"), forge(job))[0],
    "no size": lambda job: (send(json.dumps({**job, "pixels": "9"}).encode()), forge(job))[0],
    "a size twice": announces_twice,
    "for another job": lambda job: answer({"job": "another"}),
    "too much": says_too_much,
    "no shape": lambda job: answer(job, shape=None),
    "a shape of one side": lambda job: answer(job, shape=[SIDE * SIDE * 3]),
    "a shape to work out": lambda job: answer(job, shape=[-1, SIDE, 3]),
    "a shape of other bytes": lambda job: answer(job, shape=[SIDE, 2 * SIDE, 3]),
    "a shape of four channels": lambda job: answer(job, shape=[SIDE, SIDE, 4]),
    "a shape not asked for": lambda job: answer(job, shape=[3 * SIDE, SIDE // 4, 4]),
    "a shape of words": lambda job: answer(job, shape=["a", "b", "c"]),
}
DEEDS = NONSENSE | {
    "plain": answer,
    "plain and one more": lambda job: (answer(job), forge(job))[0],
    "closes": closes_its_pipe,
    "is killed": lambda job: os.kill(os.getpid(), signal.SIGKILL),
    "cannot start": lambda job: sys.exit(1),
}


def main() -> None:
    while (message := read_message(stdin)) is not None:
        job, upload = message
        DEEDS[upload.decode()](job)


if __name__ == "__main__":
    main()
