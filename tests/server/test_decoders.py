"""Decoder processes: bounded, reused, ended with their request, and none left behind."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import numpy as np
import psutil
import pytest
from PIL import Image

from server.errors import DecodersBusy, DecodeTimeout, ImageError
from server.http.fair_turns import FairTurns
from server.images.decode import prepare_image
from server.images.fit import ResizeMode
from server.images.workers import limits as decoder_limits
from server.images.workers import pool as decoders_module
from server.images.workers import process as decoder_process
from server.images.workers.limits import LARGE_PIXELS, DecoderLimits, limits_in_words
from server.images.workers.messages import read_message
from server.images.workers.pool import DecoderPool
from server.images.workers.process import Fit
from tests.server.hostile_pictures import large_palette, progressive_jpeg
from tests.server.pictures import file_of, four_corners, gradient
from tests.server.rogue_worker import HONEST, NONSENSE
from tests.server.server_process import ROOT
from tests.server.tiff_files import tiff_of

pytestmark = [pytest.mark.anyio, pytest.mark.process]

FIT = Fit(320, 320, ResizeMode.CROP)
PLAIN = file_of(four_corners(640, 640))
SLOW = progressive_jpeg()
"""19 seconds of CPU."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def pool_of(
    places: int = 1, limits: DecoderLimits | None = None, most_waiting: int = 64
) -> AsyncIterator[DecoderPool]:
    pool = DecoderPool(places, limits or DecoderLimits(), most_waiting)
    try:
        yield pool
    finally:
        await asyncio.to_thread(pool.close)


def processes(pool: DecoderPool) -> list[psutil.Process]:
    """The decoders of a pool that run."""
    found = []
    for worker in list(pool._workers):
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(worker.process.pid)
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def busiest(pool: DecoderPool) -> float:
    """The CPU time of the decoder that has used the most."""
    return max(sum(process.cpu_times()[:2]) for process in processes(pool))


def at_work(pool: DecoderPool) -> list[psutil.Process]:
    """Those that have used more CPU time than their start and a plain picture take."""
    return [process for process in processes(pool) if sum(process.cpu_times()[:2]) > 1.0]


async def until(condition: Callable[[], object], seconds: float = 60) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        await asyncio.sleep(0.02)


# What comes back


@pytest.mark.parametrize("mode", ResizeMode)
async def test_pixels_are_those_of_the_plain_code(decoders: DecoderPool, mode: ResizeMode) -> None:
    data = file_of(gradient(600, 400))
    for fit in (Fit(320, 640, mode), Fit(None, None, mode), Fit(None, None, mode, ((512, 512),))):
        made = await decoders.decode(data, fit)
        plain = prepare_image(data, fit.width, fit.height, fit.mode, fit.auto_sizes)
        assert made is not None
        assert np.array_equal(made, plain)
        assert made.flags.writeable


async def test_without_a_size_a_picture_is_only_checked(decoders: DecoderPool) -> None:
    assert await decoders.decode(PLAIN, None) is None
    with pytest.raises(ImageError, match=r"^init_image: the file is no picture"):
        await decoders.decode(b"no picture", None)


async def test_a_refusal_is_that_of_the_plain_code(decoders: DecoderPool) -> None:
    with pytest.raises(ImageError) as refusal:
        await decoders.decode(PLAIN[:200], FIT)
    assert str(refusal.value) == "init_image: the picture is truncated or corrupt"


async def test_workers_are_reused_and_light() -> None:
    async with pool_of() as pool:
        await pool.decode(PLAIN, FIT)
        first = {child.pid for child in processes(pool)}
        for _ in range(5):
            await pool.decode(PLAIN, FIT)
        assert {child.pid for child in processes(pool)} >= first
        assert max(child.memory_info().rss for child in processes(pool)) < 80 * 2**20


def test_a_worker_imports_no_more_than_decoding_takes() -> None:
    code = "import sys, server.images.workers.worker; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    loaded = {name.split(".")[0] for name in run.stdout.split()}
    heavy = {"torch", "transformers", "diffusers", "fastapi", "starlette", "pydantic", "sqlalchemy"}
    assert "PIL" in loaded
    assert not loaded & (heavy | {"uvicorn", "asyncio"})


async def test_a_worker_is_not_told_the_servers_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMG2IMG_API_KEYS", "a-secret")
    monkeypatch.setenv("HF_TOKEN", "another")
    async with pool_of() as pool:
        await pool.decode(PLAIN, FIT)
        for child in processes(pool):
            told = child.environ()
            assert "IMG2IMG_API_KEYS" not in told
            assert "HF_TOKEN" not in told


# Limits


ENFORCED = pytest.mark.parametrize("by_kernel", [True, False], ids=["kernel", "server"])


@pytest.fixture
def enforced(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Has limits enforced by the kernel, or as on a system that has none."""

    def choose(by_kernel: bool) -> None:
        if by_kernel:
            if sys.platform != "linux":
                pytest.skip("no limits of the kernel here")
            return
        monkeypatch.setattr(decoder_process, "KERNEL_LIMITS", False)
        monkeypatch.setattr(decoder_process, "WORKER", "tests.server.unlimited_worker")

    return choose


@ENFORCED
async def test_cpu_time_is_bounded(enforced: Callable[[bool], None], by_kernel: bool) -> None:
    enforced(by_kernel)
    async with pool_of(limits=DecoderLimits(seconds=0.4)) as pool:
        with pytest.raises(ImageError) as refusal:
            await pool.decode(SLOW, FIT)
        assert str(refusal.value) == "init_image: the picture takes more than 0.4 s to decode"
        assert (await pool.decode(PLAIN, FIT)) is not None


@ENFORCED
async def test_memory_is_bounded(enforced: Callable[[bool], None], by_kernel: bool) -> None:
    enforced(by_kernel)
    large = file_of(Image.new("RGB", (4000, 3900)), compress_level=1)
    async with pool_of(limits=DecoderLimits(mib=32)) as pool:
        with pytest.raises(ImageError) as refusal:
            await pool.decode(large, FIT)
        assert str(refusal.value) == (
            "init_image: the picture takes more than 32 MiB of memory to decode"
        )
        assert (await pool.decode(PLAIN, FIT)) is not None


async def test_a_deep_tiff_of_one_strip_is_unpacked_once() -> None:
    strip = np.full((3000, 4000, 3), 0x4040, np.uint16)  # 72 MB
    async with pool_of(limits=DecoderLimits(mib=225)) as pool:
        assert (await pool.decode(tiff_of(strip, 2, compression=8), FIT)) is not None


def test_limits_grow_with_the_pixels_beyond_sixteen_million() -> None:
    limits = DecoderLimits()
    assert limits.cpu_seconds(LARGE_PIXELS) == 2.0
    assert limits.cpu_seconds(LARGE_PIXELS + 10**6) == pytest.approx(2.1)
    assert limits.memory_bytes(0) == 600 * 2**20
    assert limits.memory_bytes(LARGE_PIXELS + 100) == 600 * 2**20 + 1200


def test_the_operator_is_told_who_enforces_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_limits, "KERNEL_LIMITS", True)
    assert "by the kernel" in limits_in_words()
    monkeypatch.setattr(decoder_limits, "KERNEL_LIMITS", False)
    assert "by the server" in limits_in_words()


async def test_a_large_palette_with_transparency_is_taken(decoders: DecoderPool) -> None:
    made = await decoders.decode(large_palette(), FIT)
    assert made is not None
    assert np.abs(made.astype(int) - (227, 127, 127)).max() <= 1


async def test_limits_are_for_each_picture_and_not_for_all(decoders: DecoderPool) -> None:
    data = file_of(gradient(2000, 2000))
    async with pool_of(limits=DecoderLimits(seconds=0.4)) as pool:
        await pool.decode(PLAIN, FIT)
        started = used = busiest(pool)
        while used - started < 0.6:
            await pool.decode(data, FIT)
            used = busiest(pool)


async def test_a_worker_that_crashes_takes_only_its_own_picture(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with pool_of(places=2, limits=DecoderLimits(seconds=60)) as pool:
        await pool.decode(PLAIN, FIT)
        slow = asyncio.ensure_future(pool.decode(SLOW, FIT))
        await until(lambda: at_work(pool))
        os.kill(at_work(pool)[0].pid, signal.SIGSEGV)
        with pytest.raises(ImageError, match="its decoder crashed"):
            await slow
        assert "a decoder ended" in caplog.text
        assert (await pool.decode(PLAIN, FIT)) is not None


# Workers that break the protocol, or do not run


@pytest.fixture
def rogue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_process, "WORKER", "tests.server.rogue_worker")


async def take_plain(pool: DecoderPool) -> None:
    """Decode a picture, by a worker that is honest about it, and see that it is that picture."""
    made = await pool.decode(b"plain", FIT, deadline=time.monotonic() + 30)
    assert made is not None
    assert (made == HONEST[0]).all()


@pytest.mark.usefixtures("rogue")
@pytest.mark.parametrize("deed", NONSENSE)
async def test_a_worker_that_answers_nonsense_is_ended(
    deed: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with pool_of() as pool:
        with pytest.raises(ImageError, match="its decoder crashed"):
            await pool.decode(deed.encode(), FIT, deadline=time.monotonic() + 30)
        assert "a decoder broke the protocol" in caplog.text
        await take_plain(pool)


@pytest.mark.usefixtures("rogue")
async def test_an_answer_left_over_is_not_taken_for_the_next_picture() -> None:
    async with pool_of() as pool:
        for _ in range(2):
            made = await pool.decode(b"plain and one more", FIT)
            assert made is not None
            assert (made == HONEST[0]).all()
            with pytest.raises(ImageError, match="its decoder crashed"):
                await pool.decode(b"plain", FIT)
            await take_plain(pool)


def test_what_a_message_may_take_is_known_before_it_is_read() -> None:
    stream = io.BytesIO(struct.pack(">IQ", 2, 1000) + b"{}" + bytes(1000))
    with pytest.raises(ValueError, match="too long"):
        read_message(stream, 1001)
    stream.seek(0)
    assert read_message(stream, 1002) == ({}, bytes(1000))


@pytest.mark.usefixtures("rogue")
async def test_a_worker_that_closes_its_pipe_is_ended() -> None:
    async with pool_of() as pool:
        with pytest.raises(ImageError, match="its decoder crashed"):
            await pool.decode(b"closes", FIT, deadline=time.monotonic() + 30)
        await take_plain(pool)


@pytest.mark.usefixtures("rogue")
@pytest.mark.parametrize(
    ("deed", "told", "logged"),
    [
        pytest.param(
            "is killed", "was killed", "perhaps for want of memory",
            marks=pytest.mark.skipif(os.name != "posix", reason="no signals"),
        ),
        ("cannot start", "no decoder could be started", "ended with status 1 before"),
    ],
)  # fmt: skip
async def test_a_worker_that_ends_through_no_fault_of_its_picture(
    deed: str, told: str, logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with pool_of() as pool:
        with pytest.raises(DecodersBusy, match=told):
            await pool.decode(deed.encode(), FIT)
        (record,) = [record for record in caplog.records if logged in record.message]
        assert record.levelname == "ERROR"
        await take_plain(pool)


async def test_decoders_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_process, "WORKER", "server.no_such_module")
    async with pool_of() as pool:
        with pytest.raises(DecodersBusy, match="no decoder could be started"):
            await pool.decode(PLAIN, FIT)


async def test_a_spare_that_cannot_be_started_is_not_missed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    started = 0

    def start() -> decoder_process.Worker:
        nonlocal started
        started += 1
        if started > 1:
            raise OSError("no more processes")
        return decoder_process.Worker()

    monkeypatch.setattr(decoders_module, "Worker", start)
    async with pool_of() as pool:
        for _ in range(3):
            assert (await pool.decode(PLAIN, FIT)) is not None
        assert len(pool._workers) == 1
        assert "no more processes" in caplog.text


async def test_a_pool_has_one_worker_more_than_places_at_most() -> None:
    async with pool_of(places=2) as pool:
        made = await asyncio.gather(*[pool.decode(PLAIN, FIT, client=str(i)) for i in range(8)])
        assert all(picture is not None for picture in made)
        assert 2 <= len(pool._workers) <= 3


async def test_a_pool_without_a_spare() -> None:
    pool = DecoderPool(1, DecoderLimits(), spare=False)
    try:
        assert (await pool.decode(PLAIN, FIT)) is not None
        assert len(pool._workers) == 1
    finally:
        await asyncio.to_thread(pool.close)


# Deadlines, clients, turns


async def test_a_deadline_ends_the_decoding() -> None:
    async with pool_of(limits=DecoderLimits(seconds=60)) as pool:
        await pool.decode(PLAIN, FIT)
        with pytest.raises(DecodeTimeout):
            await pool.decode(SLOW, FIT, deadline=time.monotonic() + 0.3)
        await until(lambda: not at_work(pool))
        assert (await pool.decode(PLAIN, FIT)) is not None


async def test_a_deadline_counts_the_wait_for_a_place() -> None:
    async with pool_of(limits=DecoderLimits(seconds=60)) as pool:
        slow = asyncio.ensure_future(pool.decode(SLOW, FIT, client="a"))
        await asyncio.sleep(0.1)
        with pytest.raises(DecodeTimeout):
            await pool.decode(PLAIN, FIT, deadline=time.monotonic() + 0.2, client="b")
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
        assert (await pool.decode(PLAIN, FIT)) is not None


async def test_a_caller_that_leaves_ends_its_worker() -> None:
    async with pool_of(limits=DecoderLimits(seconds=60)) as pool:
        slow = [asyncio.ensure_future(pool.decode(SLOW, FIT)) for _ in range(3)]
        await until(lambda: at_work(pool))
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        assert (await pool.decode(PLAIN, FIT)) is not None


async def test_large_pictures_wait_for_one_another_without_a_place() -> None:
    large = large_palette((4100, 4000))
    async with pool_of(places=3) as pool:
        waiting = [asyncio.ensure_future(pool.decode(large, FIT, client="a")) for _ in range(3)]
        await until(lambda: pool._large_turn.waiting.total() == 2)
        assert (await pool.decode(PLAIN, FIT, client="b")) is not None
        assert not all(task.done() for task in waiting)
        assert all(made is not None for made in await asyncio.gather(*waiting))
        assert pool._large_turn.try_take("a")


async def test_too_many_that_wait_are_refused() -> None:
    async with pool_of(limits=DecoderLimits(seconds=60), most_waiting=2) as pool:
        slow = [asyncio.ensure_future(pool.decode(SLOW, FIT)) for _ in range(3)]
        await asyncio.sleep(0.1)
        with pytest.raises(DecodersBusy, match="too many pictures wait"):
            await pool.decode(PLAIN, FIT)
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)


async def test_the_queue_of_one_client_shuts_out_no_other() -> None:
    async with pool_of(limits=DecoderLimits(seconds=60), most_waiting=8) as pool:
        waiting = [asyncio.ensure_future(pool.decode(SLOW, FIT, client="a")) for _ in range(9)]
        await until(lambda: pool._turns.waiting == {"a": 8})
        # A share is 8 / 3 for the second client, 8 / 4 for the third.
        for client, share in (("b", 2), ("c", 2)):
            for _ in range(share):
                waiting.append(asyncio.ensure_future(pool.decode(PLAIN, FIT, client=client)))
                await asyncio.sleep(0)
            with pytest.raises(DecodersBusy, match="too many pictures wait"):
                await pool.decode(PLAIN, FIT, client=client)
        with pytest.raises(DecodersBusy, match="too many pictures wait"):
            await pool.decode(PLAIN, FIT, client="a")
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_pool_that_is_closed_takes_nothing_and_leaves_nothing() -> None:
    pool = DecoderPool(2, DecoderLimits(seconds=60))
    pool.start()
    slow = asyncio.ensure_future(pool.decode(SLOW, FIT))
    await until(lambda: at_work(pool))
    mine = processes(pool)
    await asyncio.to_thread(pool.close)
    with pytest.raises(DecodersBusy, match="shutting down"):
        await slow
    with pytest.raises(DecodersBusy, match="shutting down"):
        await pool.decode(PLAIN, FIT)
    assert mine
    assert not any(process.is_running() for process in mine)


def test_clients_take_turns() -> None:
    turns = FairTurns(1)
    order: list[str] = []
    assert turns.try_take("z")
    for client in ("a", "a", "a", "b", "c", "b"):
        turns.take(client).add_done_callback(lambda _, client=client: order.append(client))
    assert turns.waiting == {"a": 3, "b": 2, "c": 1}
    holder = "z"
    for done in range(6):
        turns.give_back(holder)
        holder = order[done]
    assert order == ["a", "b", "c", "a", "b", "a"]
    turns.give_back(holder)
    assert turns.try_take("a")
    assert not turns.try_take("b")


def test_a_client_never_holds_the_last_of_several_places() -> None:
    turns = FairTurns(3)
    mine = [turns.take("a") for _ in range(3)]
    assert [turn.done() for turn in mine] == [True, True, False]
    other = turns.take("b")
    assert other.done()
    turns.give_back("a")
    assert mine[2].done()
    assert not turns.try_take("c")
    for client in ("a", "a", "b"):
        turns.give_back(client)
    assert turns.try_take("c")


def test_a_turn_that_nobody_waits_for_is_passed_on() -> None:
    turns = FairTurns(1)
    turns.take("a")
    left, stays = turns.take("b"), turns.take("c")
    assert left.cancel()
    turns.give_back("a")
    assert stays.done()
    turns.give_back("c")
    assert turns.try_take("a")


# Orphans and signals


@pytest.fixture
def parent() -> Iterator[subprocess.Popen[str]]:
    """A process that has a decoder at work, and prints its process id."""
    code = (
        "import asyncio, sys\n"
        "from server.images.workers.pool import *\n"
        "from tests.server.hostile_pictures import progressive_jpeg\n"
        "async def main():\n"
        "    pool = DecoderPool(1, DecoderLimits(seconds=3))\n"
        "    slow = asyncio.ensure_future(pool.decode(progressive_jpeg(), None))\n"
        "    await asyncio.sleep(0.5)\n"
        "    print(*[worker.process.pid for worker in pool._workers], flush=True)\n"
        "    await slow\n"
        "asyncio.run(main())\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    yield process
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_no_worker_outlives_a_server_that_is_killed(parent: subprocess.Popen[str]) -> None:
    assert parent.stdout is not None
    workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2
    parent.kill()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive


async def test_a_worker_does_not_end_by_the_signals_of_its_server() -> None:
    async with pool_of() as pool:
        await pool.decode(PLAIN, FIT)
        worker = pool._idle[-1].process.pid
        assert os.getsid(worker) == worker  # not in the terminal's group
        os.kill(worker, signal.SIGTERM)
        os.kill(worker, signal.SIGINT)
        await pool.decode(PLAIN, FIT)
        assert pool._idle[-1].process.pid == worker


def test_a_worker_ends_when_its_input_does() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "server.images.workers.worker"], cwd=ROOT, input=b"", timeout=60
    )
    assert run.returncode == 0
