"""Ask a server for mixed images over every protocol for long, and see whether it grows.

.venv/bin/python scripts/soak [--minutes 60] [--clients 8] [--model MODEL] [--plot FILE]

A real server on a tiny model of random weights (more requests an hour show a leak sooner than
better pictures), with accounts, limits and a key. Clients ask without a pause: the contract, its
event stream, OpenAI's, Stability's and A1111's API, several sizes, samplers and formats, masks,
answers kept by key, bad input, clients that leave. Every five seconds its memory, descriptors and
threads are noted. Exits with 1 if it grew or an answer was wrong. SIGUSR1 pauses the clients, and
lets them go on. Needs the `bench` extra for the plot.
"""

from __future__ import annotations

import argparse
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import requests

from scripts.robustness.mixed_requests import KINDS, Kind
from tests.server.server_process import PRODUCT, running_server
from tests.server.team import Team
from tests.tiny_model import write_tiny_model

SAMPLE_SECONDS = 5.0
PATIENCE = 300.0
MIB = 1024 * 1024
GROWTH = 1.05
"""What the last quarter may have of the second's memory: the first fills caches and pools."""
CREDITS = 10**9
MEMORY, DESCRIPTORS = "resident memory, MiB", "descriptors"
MORE_DESCRIPTORS = 8


@dataclass(frozen=True)
class Sample:
    """What the server's process holds, `seconds` after the start; the decoders' memory is apart."""

    seconds: float
    resident: int
    decoders: int
    descriptors: int
    threads: int
    answers: int


@dataclass
class Soak:
    """The clients of a server, and what came of their requests."""

    url: str
    api_key: str
    answers: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    samples: list[Sample] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.going, self.over = threading.Event(), threading.Event()
        self.going.set()
        self._lock = threading.Lock()

    def pause_or_go_on(self, *_: object) -> None:
        if self.going.is_set():
            self.going.clear()
        else:
            self.going.set()

    def end(self, *_: object) -> None:
        self.over.set()

    def run(self, process: psutil.Process, seconds: float, clients: int) -> None:
        """Ask for `seconds`, pauses left out, and note what the process holds."""
        threads = [
            threading.Thread(target=self._client, args=(random.Random(i),)) for i in range(clients)
        ]
        for thread in threads:
            thread.start()
        asked = 0.0
        try:
            while asked < seconds and process.is_running() and not self.over.is_set():
                if not self.going.wait(SAMPLE_SECONDS):
                    continue
                self.samples.append(self._look(process, asked))
                time.sleep(SAMPLE_SECONDS)
                asked += SAMPLE_SECONDS
        finally:
            self.over.set()
            self.going.set()
            for thread in threads:
                thread.join()

    def _client(self, chance: random.Random) -> None:
        session = requests.Session()
        session.headers["Authorization"] = self.api_key
        kinds, weights = list(KINDS), [kind.weight for kind in KINDS]
        while not self.over.is_set():
            self.going.wait()
            [kind] = chance.choices(kinds, weights)
            problem = self._ask(session, kind, chance)
            with self._lock:
                self.answers[kind.name] += 1
                if problem:
                    self.wrong[f"{kind.name}: {problem}"[:300]] += 1

    def _ask(self, session: requests.Session, kind: Kind, chance: random.Random) -> str:
        try:
            return kind.ask(session, self.url, chance, PATIENCE)
        except (requests.RequestException, ValueError, KeyError, OSError) as error:
            return f"{type(error).__name__}: {error}"

    def _look(self, process: psutil.Process, seconds: float) -> Sample:
        decoders = 0
        for child in process.children():
            try:
                decoders += child.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return Sample(
            seconds,
            process.memory_info().rss,
            decoders,
            process.num_fds(),
            process.num_threads(),
            sum(self.answers.values()),
        )


def verdict(samples: list[Sample]) -> dict[str, tuple[float, float]]:
    """Return the medians of the run's second quarter and of its last, by what was measured."""
    quarter = max(1, len(samples) // 4)
    parts = samples[quarter : 2 * quarter] or samples, samples[-quarter:]

    def medians(measured: Callable[[Sample], float]) -> tuple[float, float]:
        early, late = (statistics.median(map(measured, part)) for part in parts)
        return early, late

    return {
        MEMORY: medians(lambda one: one.resident / MIB),
        "decoders' memory, MiB": medians(lambda one: one.decoders / MIB),
        DESCRIPTORS: medians(lambda one: one.descriptors),
        "threads": medians(lambda one: one.threads),
    }


def plot(samples: list[Sample], file: Path) -> None:
    """Memory above, descriptors and threads below, over the minutes of the run."""
    from scripts.plots import pyplot, save

    minutes = [one.seconds / 60 for one in samples]
    figure, (memory, counts) = pyplot.subplots(2, 1, figsize=(9, 6), sharex=True)
    memory.plot(minutes, [one.resident / MIB for one in samples], label="server")
    memory.plot(minutes, [one.decoders / MIB for one in samples], label="decoders")
    memory.set_ylabel("resident memory, MiB")
    counts.plot(minutes, [one.descriptors for one in samples], label="descriptors")
    counts.plot(minutes, [one.threads for one in samples], label="threads")
    counts.set_ylabel("number")
    counts.set_xlabel("minutes at saturation")
    for axis in (memory, counts):
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    save(figure, file)


def report(soak: Soak, problems: list[str]) -> bool:
    """Print what was measured; return whether all is well."""
    minutes = soak.samples[-1].seconds / 60
    print(f"{sum(soak.answers.values())} requests in {minutes:.0f} minutes\n")
    print("| kind | requests |\n|---|---|")
    for name, count in sorted(soak.answers.items()):
        print(f"| {name} | {count} |")
    print("\n| | second quarter | last quarter |\n|---|---|---|")
    found = verdict(soak.samples)
    for name, (early, late) in found.items():
        print(f"| {name} | {early:.0f} | {late:.0f} |")
    early, late = found[MEMORY]
    if late > early * GROWTH:
        problems.append(f"memory grew from {early:.0f} to {late:.0f} MiB")
    early, late = found[DESCRIPTORS]
    if late > early + MORE_DESCRIPTORS:
        problems.append(f"descriptors grew from {early:.0f} to {late:.0f}")
    problems += [f"{count} times {what}" for what, count in soak.wrong.most_common(20)]
    print("\n" + ("\n".join(problems) or "Nothing grew, no answer was wrong, the ledger is exact."))
    return not problems


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--model", help="instead of the tiny one of random weights")
    parser.add_argument("--plot", type=Path, help="file of the plot")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        team = Team(f"sqlite:///{folder}/accounts.db")
        model = options.model or str(write_tiny_model(folder / "model"))
        settings = {
            "model": model,
            "database_url": team.url,
            "answers_mib": "16",
            "rate": "100000/minute",
            "log_level": "warning",
        }
        key = team.make_key("soak", CREDITS)
        with running_server(PRODUCT, folder, "serve", **settings) as server:
            server.wait_for("/health/ready", seconds=300)
            soak = Soak(server.url, key)
            signal.signal(signal.SIGUSR1, soak.pause_or_go_on)
            signal.signal(signal.SIGINT, soak.end)
            soak.run(psutil.Process(server.process.pid), options.minutes * 60, options.clients)
            server.terminate()
            status = server.exit_status()
            problems = [f"the ledger: {problem}" for problem in team.problems()]
            problems += [f"it ended with status {status}"] if status else []
            lines = [line for line in server.log.splitlines() if " level=error" in line]
            problems += [f"the log: {line}" for line in lines[:20]]
        if options.plot:
            plot(soak.samples, options.plot)
        return 0 if report(soak, problems) else 1


if __name__ == "__main__":
    sys.exit(main())
