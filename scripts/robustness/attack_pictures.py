"""Send a running server small pictures that are costly to decode, four at a time, and say what a
plain request waits meanwhile, how long its health takes (p99), what its processes take (CPU time
and peak memory of the server with its decoders), and how it answers.

    scripts/attack_pictures URL PID [NAME ...]

URL is the server's on this machine, PID its process; NAME picks attacks by a part of their names.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import requests

from tests.server.hostile_pictures import ATTACKS
from tests.server.pictures import file_of, four_corners

ATTACKERS = 4
SECONDS_BETWEEN = 0.05
MOST_PROBES = 64
PATH = "/api/generate/basic/imageToImage"
PLAIN = file_of(four_corners(512, 512))


class Watch(threading.Thread):
    """Measures the server with its children, and asks it for its health, until it is stopped."""

    def __init__(self, pid: int, url: str) -> None:
        super().__init__(daemon=True)
        self.server = psutil.Process(pid)
        self.url = url
        self.peak = 0
        self.health: list[float] = []
        self.stopped = threading.Event()
        self.start_cpu = self._cpu()
        self.cpu_of: dict[int, float] = {}

    def _processes(self) -> list[psutil.Process]:
        return [self.server, *self.server.children(recursive=True)]

    def _cpu(self) -> dict[int, float]:
        return {p.pid: sum(p.cpu_times()[:2]) for p in self._processes()}

    def run(self) -> None:
        # Each probe in a thread of its own: one that waits holds up no other, and hides none.
        with ThreadPoolExecutor(MOST_PROBES) as probes:
            while not self.stopped.wait(SECONDS_BETWEEN):
                probes.submit(self._probe, time.perf_counter())
                self._measure()

    def _probe(self, due: float) -> None:
        requests.get(self.url + "/health/live", timeout=120)
        self.health.append(time.perf_counter() - due)

    def _measure(self) -> None:
        memory = 0
        for process in self._processes():
            try:
                memory += process.memory_info().rss
                self.cpu_of[process.pid] = sum(process.cpu_times()[:2])
            except psutil.Error:
                continue
        self.peak = max(self.peak, memory)

    @property
    def cpu(self) -> float:
        return sum(cpu - self.start_cpu.get(pid, 0.0) for pid, cpu in self.cpu_of.items())

    @property
    def p99(self) -> float:
        """Seconds within which 99 of 100 probes were answered."""
        return statistics.quantiles(self.health, n=100, method="inclusive")[98]


def post(url: str, data: bytes) -> tuple[float, int, str]:
    """Seconds, status and message of one request."""
    begin = time.perf_counter()
    fields = {"prompt": "a cat", "image_strength": "1", "steps": "10", "width": "320"}
    answer = requests.post(url + PATH, data=fields, files={"init_image": ("a", data)}, timeout=300)
    return time.perf_counter() - begin, answer.status_code, answer.json()["message"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("pid", type=int)
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    post(options.url, PLAIN)
    print("| attack | KiB | CPU s | peak MiB | plain request s | health p99 s | answer |")
    print("|---|---|---|---|---|---|---|")
    for name, make in ATTACKS.items():
        if options.names and not any(part in name for part in options.names):
            continue
        data = make()
        watch = Watch(options.pid, options.url)
        watch.start()
        with ThreadPoolExecutor(ATTACKERS) as attackers:
            attacks = [attackers.submit(post, options.url, data) for _ in range(ATTACKERS)]
            time.sleep(0.5)
            plain, status, message = post(options.url, PLAIN)
            answers = {attack.result()[1:] for attack in attacks}
        watch.stopped.set()
        watch.join()
        if status != 200:
            message = f"PLAIN REQUEST {status}: {message}"
        told = "; ".join(sorted(f"{code} {text}" for code, text in answers))
        print(
            f"| {name} | {len(data) // 1024} | {watch.cpu:.1f} | {watch.peak / 2**20:.0f} "
            f"| {plain:.2f} | {watch.p99:.2f} | {told}{'' if status == 200 else message} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
