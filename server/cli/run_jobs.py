"""Does the jobs of `img2img generate`, several at a time; a file is written once it is made."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from server.cli.jobs import Job, reason_of
from server.cli.maker import Maker, NotMade, by_server
from server.cli.shared import FAILURE, STOPPED, leave, print_line
from server.cli.view import View
from server.settings import Settings


def run_jobs(
    jobs: Sequence[Job], where: str | Settings, *, parallel: int, previews: bool
) -> list[int]:
    """Make and write the pictures; return the exit status of each, 0 where it is written.

    ``where`` is the URL of a server, or the settings to load a model by. Raises NotMade where no
    picture can be made at all.
    """
    if not jobs:
        return []
    with View(len(jobs), previews=previews and parallel == 1) as view:
        return asyncio.run(_Run(jobs, view).all(_maker(where), parallel))


def _maker(where: str | Settings) -> AbstractAsyncContextManager[Maker]:
    if isinstance(where, str):
        return by_server(where)
    # Imported here: this needs the engine's request and so numpy, and --help should not.
    from server.cli.in_process import in_this_process

    return in_this_process(where)


class _Run:
    def __init__(self, jobs: Sequence[Job], view: View) -> None:
        self._waiting = list(reversed(jobs))
        self._several = len(jobs) > 1
        self._view = view
        self._statuses: list[int] = []

    async def all(self, opening: AbstractAsyncContextManager[Maker], parallel: int) -> list[int]:
        async with opening as maker, self._stopping(), asyncio.TaskGroup() as group:
            if parallel > 1:
                parallel = min(parallel, await maker.places() or parallel)
            for _ in range(min(parallel, len(self._waiting))):
                group.create_task(self._work(maker))
        if self._waiting:
            self._view.say(f"{len(self._waiting)} more were not tried: they would fail alike")
        return self._statuses

    @asynccontextmanager
    async def _stopping(self) -> AsyncIterator[None]:
        try:
            yield
        except asyncio.CancelledError:
            # Of Ctrl+C. What the device has begun goes on to its end, which may take seconds; who
            # presses it again does not wait for that, even at once.
            signal.signal(signal.SIGINT, _leave)
            self._view.say("stopping ...")
            raise

    async def _work(self, maker: Maker) -> None:
        while self._waiting:
            try:
                await self._do(maker, self._waiting.pop())
            except NotMade as error:
                self._statuses.append(error.status)
                if error.hopeless:
                    return

    async def _do(self, maker: Maker, job: Job) -> None:
        """Make and write one picture. Raises NotMade, once it has been said."""
        try:
            with self._view.picture(job.output.name) as view:
                made = await maker.make(job, view)
            _write(job, made.file)
        except NotMade as error:
            self._view.say(self._named(job, str(error)))
            raise
        except OSError as error:
            self._view.say(self._named(job, str(error)))
            raise NotMade(str(error), FAILURE) from None
        for remark in made.remarks:
            self._view.say(self._named(job, remark))
        print_line(f"{job.output} (seed {made.seed})")
        self._statuses.append(0)

    def _named(self, job: Job, words: str) -> str:
        return f"{job.output.name}: {words}" if self._several else words


def _leave(*_: object) -> None:
    # Not by rich, whose lock may be held; it had the cursor hidden.
    os.write(2, b"\x1b[?25hstopped\n" if sys.stderr.isatty() else b"stopped\n")
    leave(STOPPED)


def _write(job: Job, file: bytes) -> None:
    try:
        job.write(file)
    except (OSError, ValueError) as error:
        # Minutes of work are not thrown away for a disk that filled up meanwhile.
        kept = _keep_elsewhere(file, job.output.suffix)
        message = f"{job.output}: {reason_of(error)}; the picture is in {kept}"
        raise NotMade(message, FAILURE) from None


def _keep_elsewhere(file: bytes, suffix: str) -> str:
    try:
        with tempfile.NamedTemporaryFile(prefix="img2img-", suffix=suffix, delete=False) as other:
            other.write(file)
    except OSError:
        return "no other folder either"
    return other.name
