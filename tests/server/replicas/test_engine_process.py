"""The beginning and the end of an engine's process: none hangs, stays, or is forgotten."""

from __future__ import annotations

import asyncio
import errno
import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest

from server.engine_service import StartError
from server.replicas import processes
from server.replicas.balance import Report
from server.replicas.child import Job, Stop, Watch, main
from server.replicas.engine_process import EngineProcess, ProcessStream
from server.replicas.events import Call, Waited
from server.replicas.processes import ProcessReplicas
from server.replicas.remote_engine import ReplicaLost
from tests.server.replicas import starts
from tests.server.replicas.fakes import picture

CALL = Call("a", picture(), Waited(), eager=False)


def job(file: Path, starter: Callable[..., object] = starts.breaking) -> Job:
    settings = {"model": str(file), "device": "cpu"}
    return Job(settings, f"{starts.__name__}:{starter.__name__}")


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def written(file: Path) -> list[int]:
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def with_process(
    job: Job, what: Callable[[EngineProcess], Coroutine[object, object, None]]
) -> None:
    async def run() -> None:
        process = EngineProcess("engine", job, asyncio.get_running_loop())
        try:
            async with asyncio.timeout(60):
                await what(process)
        finally:
            process.kill()

    asyncio.run(run())


@pytest.mark.process
@pytest.mark.parametrize("tell", [True, False])
def test_while_it_loads_a_stop_and_a_server_that_is_gone_end_it(tmp_path: Path, tell: bool) -> None:
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    process = context.Process(target=main, args=(other, job(tmp_path / "a", starts.hang)))
    process.start()
    other.close()
    try:
        until(lambda: written(tmp_path / "a"))
        if tell:
            pipe.send(Stop())
        else:
            pipe.close()
        process.join(10)
        assert process.exitcode == 0
    finally:
        process.kill()


@pytest.mark.process
def test_while_it_loads_what_is_asked_of_another_does_not_end_it(tmp_path: Path) -> None:
    """As progress of a request that the one had whose place it takes."""

    async def tell(process: EngineProcess) -> None:
        await asyncio.to_thread(until, lambda: written(tmp_path / "a"))
        process.send(Watch("a"))
        await asyncio.sleep(0.5)
        (tmp_path / "a.go").touch()
        assert (await process.started(60)).model == "waiting"

    with_process(job(tmp_path / "a", starts.wait_for_go), tell)


def test_progress_is_asked_of_none_that_does_not_have_the_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Process:
        def __init__(self) -> None:
            self.calls: dict[str, object] = {}
            self.sent: list[object] = []

        def send(self, message: object) -> None:
            self.sent.append(message)

    replicas = ProcessReplicas([job(tmp_path / "a")], 3.0, start_timeout=60.0)
    replicas.loop.close()
    last, new = Process(), Process()
    monkeypatch.setattr(replicas, "_processes", {"engine-0": last})
    replicas.balance.hear({"engine-0": Report(1)})
    assert replicas.balance.choose(CALL.ident, (320, 320), 1.0) == ["engine-0"]
    last.calls[CALL.ident] = object()
    replicas.watch(CALL.ident)
    assert last.sent == [Watch(CALL.ident)]
    monkeypatch.setattr(replicas, "_processes", {"engine-0": new})
    replicas.watch(CALL.ident)
    assert new.sent == []


@pytest.mark.process
def test_signals_of_its_group_are_not_for_it(tmp_path: Path) -> None:
    """Those that come while it still imports neither."""

    async def tell(process: EngineProcess) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(process.process.pid or 0, number)
        await asyncio.to_thread(until, lambda: written(tmp_path / "a"))
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(process.process.pid or 0, number)
        await asyncio.sleep(0.5)
        assert not process.ended.is_set()

    with_process(job(tmp_path / "a", starts.hang), tell)


@pytest.mark.process
def test_a_start_that_hangs_counts_as_failed(tmp_path: Path) -> None:
    replicas = ProcessReplicas([job(tmp_path / "a", starts.hang)], 3.0, start_timeout=5.0)
    with pytest.raises(StartError, match="has not started within 5 s"):
        replicas.open()
    replicas.close()
    assert not [pid for pid in written(tmp_path / "a") if is_alive(pid)]


@pytest.mark.process
@pytest.mark.parametrize(
    "starter",
    [starts.fail_and_stay, pytest.param(starts.hang, marks=pytest.mark.slow("faults"))],
)
def test_the_next_one_starts_when_the_last_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, starter: Callable[..., object]
) -> None:
    monkeypatch.setattr(processes, "_RESTART_SECONDS", (0.0,))
    file = tmp_path / "a"
    replicas = ProcessReplicas([job(file, starter)], 3.0, start_timeout=5.0)
    with pytest.raises(StartError):
        replicas.open()
    try:
        until(lambda: len(written(file)) > 1)
        assert sum(map(is_alive, written(file))) <= 1
    finally:
        replicas.close()


@pytest.mark.process
def test_one_that_breaks_with_a_request_in_it_ends_at_once(tmp_path: Path) -> None:
    async def ask(process: EngineProcess) -> None:
        await process.started(60)
        with pytest.raises(ReplicaLost, match="ended with status 1"):
            async for _ in ProcessStream(process, CALL):
                pass

    with_process(job(tmp_path / "a"), ask)


@pytest.mark.process
def test_one_that_cannot_be_told_is_killed(tmp_path: Path) -> None:
    async def tell(process: EngineProcess) -> None:
        await process.started(60)
        process.send(threading.Lock())  # as a call that there is no memory to write
        await process.ended.wait()
        assert process.process.exitcode == -signal.SIGKILL

    with_process(job(tmp_path / "a"), tell)


@pytest.mark.process
def test_a_call_of_one_that_has_just_ended_is_told(tmp_path: Path) -> None:
    async def ask(process: EngineProcess) -> None:
        await process.started(60)
        stream = ProcessStream(process, CALL)
        process.kill()
        await process.ended.wait()
        with pytest.raises(ReplicaLost, match="has ended"):
            await anext(stream.__aiter__())

    with_process(job(tmp_path / "a"), ask)


class Lacking:
    """What the system has no more of, by name, as long as it is in `now`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now: set[str] = set()
        self._patch = monkeypatch
        context = multiprocessing.get_context("spawn")
        files = OSError(errno.EMFILE, "too many open files")
        self._refuse(context, "Pipe", lambda *_: "pipe", files)
        self._refuse(context.Process, "start", lambda *_: "process", files)
        threads = RuntimeError("can't start new thread")
        self._refuse(threading.Thread, "start", lambda one: one.name.rpartition("-")[2], threads)

    def _refuse(
        self, owner: object, method: str, what: Callable[..., str], error: Exception
    ) -> None:
        usual = getattr(owner, method)

        def refusing(*args: object) -> object:
            if what(*args) in self.now:
                raise type(error)(*error.args)
            return usual(*args)

        self._patch.setattr(owner, method, refusing)


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> Lacking:
    return Lacking(monkeypatch)


@pytest.mark.process
@pytest.mark.parametrize("what", ["pipe", "process", "write", "read"])
def test_one_that_cannot_be_made_leaves_nothing(
    tmp_path: Path, lacking: Lacking, what: str
) -> None:
    resource_tracker.ensure_running()

    async def make() -> None:
        with pytest.raises((OSError, RuntimeError), match=r"open files|new thread"):
            EngineProcess("engine", job(tmp_path / "a"), asyncio.get_running_loop())

    threads, files = set(threading.enumerate()), set(Path("/proc/self/fd").iterdir())
    lacking.now = {what}
    asyncio.run(make())
    gc.collect()
    until(lambda: set(threading.enumerate()) <= threads)
    assert set(Path("/proc/self/fd").iterdir()) <= files
    assert multiprocessing.active_children() == []


@pytest.mark.process
@pytest.mark.parametrize("what", ["pipe", "process", "read"])
def test_what_the_system_lacks_for_a_while_costs_no_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: Lacking, what: str
) -> None:
    monkeypatch.setattr(processes, "_RESTART_SECONDS", (0.05,))
    failed: list[str] = []
    monkeypatch.setattr(processes.logger, "error", lambda text, **_: failed.append(text))
    replicas = ProcessReplicas([job(tmp_path / "a")], 3.0, start_timeout=60.0)
    replicas.open()
    try:
        first = replicas._processes["engine-0"]
        lacking.now = {what}
        first.kill()
        until(lambda: failed.count("engine not started") > 1)
        assert not replicas.balance.usable
        lacking.now = set()
        until(lambda: replicas.balance.usable)
    finally:
        replicas.close()


@pytest.mark.parametrize("error", [OSError("too many open files"), LookupError("by nobody")])
def test_a_first_start_that_fails_in_any_way_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    said: list[tuple[str, dict[str, Any]]] = []

    def hear(text: str, extra: dict[str, Any], **_: object) -> None:
        said.append((text, extra["fields"]))

    monkeypatch.setattr(processes.logger, "error", hear)
    monkeypatch.setattr(processes, "_RESTART_SECONDS", (60.0,))
    monkeypatch.setattr(processes, "EngineProcess", fail)
    replicas = ProcessReplicas([job(tmp_path / "a")] * 2, 3.0, start_timeout=60.0)
    opening = ThreadPoolExecutor(1).submit(replicas.open)
    try:
        with pytest.raises(StartError, match=str(error)):
            opening.result(10)
    finally:
        if not opening.done():
            replicas._first.set_exception(StartError("nothing came"))
        replicas.close()
    assert said == [
        ("engine not started", {"engine": name, "reason": str(error), "again_in": 60.0})
        for name in ("engine-0", "engine-1")
    ]


@pytest.mark.slow("faults")
@pytest.mark.process
def test_a_score_that_a_frozen_one_owes_comes_from_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before the frozen one is ended: who waits has a thread that all images need."""
    monkeypatch.setattr(processes, "SILENT_SECONDS", starts.LONG)
    jobs = [job(tmp_path / name, starts.scoring) for name in ("a", "b")]
    replicas = ProcessReplicas(jobs, patience=0.5, start_timeout=60.0)
    replicas.open()
    asking = ThreadPoolExecutor(1)
    try:
        until(lambda: len(replicas.balance.owed()) == 2)
        others = replicas.balance.idlest
        monkeypatch.setattr(
            replicas.balance, "idlest", lambda asked: others(asked) if asked else "engine-0"
        )
        (frozen,) = written(tmp_path / "a")
        os.kill(frozen, signal.SIGSTOP)
        assert asking.submit(replicas.score, picture().image).result(60) == 0.25
    finally:
        replicas.close()
        asking.shutdown()


def test_how_long_a_start_may_take(tmp_path: Path) -> None:
    replicas = ProcessReplicas([job(tmp_path / "a")], 3.0, start_timeout=900.0)
    replicas.loop.close()
    assert replicas._patience_with_start(again=True) == 900, "none has gone well yet"
    for slowest, seconds in ((2.0, 60), (40.0, 200), (400.0, 900)):
        replicas._slowest = slowest
        assert replicas._patience_with_start(again=False) == 900
        assert replicas._patience_with_start(again=True) == seconds
