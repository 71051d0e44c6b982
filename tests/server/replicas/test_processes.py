"""Engines in processes of their own: real processes, in which an engine sleeps."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import requests
import torch

from pipelines.request import GenerationResult
from scripts.benchmarks.replicas.sleeping import STARTER, WHO, drawn
from server.accounts.types import Balance
from server.engine_service import LoadedModel, StartError
from server.replicas import processes
from server.replicas.devices import Devices, devices_of, replica_settings
from server.replicas.processes import start_on_devices
from server.settings import Settings
from tests.server.conftest import PATH
from tests.server.replicas.fakes import picture
from tests.server.server_process import running_server
from tests.server.team import Team

EACH_SLOWER = "h200*8"


@contextmanager
def engines(count: int, model: str = EACH_SLOWER) -> Iterator[LoadedModel]:
    settings = Settings(model=model, device="cpu", devices=str(count), replica_patience=0.5)
    loaded = start_on_devices(settings, STARTER)
    loaded.engine.start()
    try:
        yield loaded
    finally:
        loaded.engine.drain(0.0)


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def processes_of(results: list[GenerationResult]) -> set[int]:
    return {int(result.timings[WHO]) for result in results}


def make(loaded: LoadedModel, seed: int) -> GenerationResult:
    handle = loaded.engine.submit(picture(seed))
    return handle.wait(60)  # type: ignore[attr-defined, no-any-return]


@pytest.mark.process
def test_two_processes_share_the_work_and_one_that_dies_or_freezes_is_done_without() -> None:
    with engines(2) as loaded, ThreadPoolExecutor(8) as pool:
        until(lambda: len(loaded.engine._replicas.balance.owed()) == 2)  # type: ignore[attr-defined]
        assert (loaded.name, loaded.device, loaded.clip) == (EACH_SLOWER, "sleeping", None)
        assert [cost.pixels for cost in loaded.engine.costs_by_size()][:1] == [320 * 320]

        def used() -> set[int]:
            return processes_of(list(pool.map(partial(make, loaded), range(1, 9))))

        both = used()
        assert len(both) == 2
        assert os.getpid() not in both
        for fault in (signal.SIGSTOP, signal.SIGKILL):
            one = min(both)
            running = [pool.submit(make, loaded, seed) for seed in range(11, 17)]
            time.sleep(0.05)
            os.kill(one, fault)
            results = [future.result() for future in running]
            for seed, result in enumerate(results, 11):
                assert np.array_equal(result.image, drawn(picture(seed)))
        until(lambda: len(used() - both) == 1)
        began = time.monotonic()
    assert time.monotonic() - began < 10


@pytest.mark.process
def test_what_keeps_an_engine_from_starting_is_said() -> None:
    with pytest.raises(StartError, match="no such weights"), engines(2, "broken"):
        pass


@pytest.mark.slow("faults")
@pytest.mark.process
def test_over_http_a_killed_engines_request_is_charged_once(
    tmp_path: Path, picture_file: bytes
) -> None:
    """The seed of 0 is drawn by the server, so the image is the one of the answer's seed."""
    url = f"sqlite:///{tmp_path}/accounts.db"
    team = Team(url)
    key = team.make_key()
    with (
        running_server(
            "tests.server.replicas.sleeping_server",
            tmp_path,
            model="h200*12",
            device="cpu",
            devices="2",
            database_url=url,
            replica_patience="0.5",
        ) as server,
        ThreadPoolExecutor(8) as pool,
    ):
        server.wait_for("/health/ready")
        ready = [server.log_line(f'"engine ready" engine=engine-{number}') for number in (0, 1)]

        def ask(seed: int) -> requests.Response:
            return requests.post(
                server.url + PATH,
                data={"prompt": "a cat", "width": "320", "height": "320", "seed": str(seed)},
                files={"init_image": ("a.png", picture_file)},
                headers={"Authorization": key, "Accept": "application/json"},
                timeout=60,
            )

        answers = [pool.submit(ask, seed) for seed in (0, 0, 7, 7, 8, 9)]
        team.wait_for({"open": 6})
        os.kill(int(ready[0].rpartition("pid=")[2]), signal.SIGKILL)
        codes = [answer.result().status_code for answer in answers]
        assert codes == [200] * 6
        bodies = [answer.result().json()["data"]["image"] for answer in answers]
        assert bodies[2] == bodies[3]
        assert len({*bodies}) == 5
        assert "another takes its request" in server.log
        server.terminate()
        assert server.exit_status() == 0
    assert team.states() == {"settled": 6}
    assert team.balance() == Balance(76, 0)
    assert team.problems() == []


@pytest.mark.process
def test_the_servers_own_process_does_without_torch() -> None:
    asked = (
        "import sys, server.app, server.replicas.processes as p;"
        "print(p.card_count(), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout == f"{torch.cuda.device_count()} False\n"


def test_cards_are_not_counted_for_engines_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "card_count", None)
    with pytest.raises(StartError, match="a number of engines on the CPU"):
        start_on_devices(Settings(device="cpu", devices="all"), STARTER)


def test_a_torch_that_counts_no_cards_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "no-such-python")
    with pytest.raises(StartError, match="IMG2IMG_DEVICES: torch"):
        start_on_devices(Settings(devices="all"), STARTER)


def cards(settings: Settings, count: int) -> tuple[int, int]:
    devices = devices_of(settings, count)
    return devices.count, devices.gpus


def test_devices() -> None:
    def of(devices: str, cards_here: int, device: str = "auto") -> tuple[int, int]:
        return cards(Settings(devices=devices, device=device), cards_here)

    assert of("all", 8) == (8, 1)
    assert of("2", 8, "cuda") == (2, 1)
    assert of("2", 0) == (2, 0)
    assert of("3", 8, "cpu") == (3, 0)
    for devices, cards_here, device in (("all", 0, "auto"), ("all", 2, "cpu"), ("4", 2, "cuda")):
        with pytest.raises(StartError, match="IMG2IMG_DEVICES"):
            of(devices, cards_here, device)
    assert of("2", 8, "cuda:0") == (2, 1)
    for devices in ("2", "all"):  # every engine sees its own card alone
        with pytest.raises(StartError, match="IMG2IMG_DEVICE: cuda:1 is one card"):
            of(devices, 8, "cuda:1")


@pytest.mark.parametrize("devices", ["0", "65", "some", "-1", "1.5"])
def test_devices_that_are_none(devices: str) -> None:
    with pytest.raises(ValueError, match="neither 'all' nor a number from 1 to 64"):
        Settings(devices=devices)


def test_one_place_of_the_engines_alone() -> None:
    with pytest.raises(ValueError, match="cannot both be given"):
        Settings(devices="2", ray_address="auto")


def test_each_process_sees_one_card_of_those_that_the_server_sees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert processes._cards(Devices(2, 0)) == [None, None]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert processes._cards(Devices(2, 1)) == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-abc")
    assert processes._cards(Devices(2, 1)) == ["5", "GPU-abc"]


def test_no_engine_gets_the_servers_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(
        api_keys="secret", database_url="postgresql://u:p@db/x", model="m", devices="2", threads=3
    )
    given = replica_settings(settings, Devices(2, 0))
    assert given["model"] == "m"
    assert given["threads"] == 3
    assert not {"api_keys", "database_url", "limits_url"} & set(given)
    assert Settings(**given).devices == ""
