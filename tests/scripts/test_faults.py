"""A real server under load loses nothing whatever fails, and does not grow: see the scripts."""

from __future__ import annotations

import subprocess
import sys

import pytest

from scripts.robustness.faults import of_clients, of_stores, of_the_server
from scripts.robustness.faults.__main__ import growth
from scripts.robustness.faults.scene import Fault
from scripts.robustness.soak import MIB, Sample, Soak, report
from tests.server.server_process import ROOT
from tests.services import skip_or_fail

SECONDS = 1200
"""After which a script is taken to hang, on a machine however busy."""
GROUPS = (of_the_server.FAULTS, of_stores.FAULTS, of_clients.FAULTS)


@pytest.mark.slow("faults")
@pytest.mark.parametrize("faults", GROUPS, ids=["server", "stores", "clients"])
def test_nothing_is_lost(faults: tuple[Fault, ...]) -> None:
    names = [fault.name for fault in faults]
    done = subprocess.run(
        [sys.executable, "scripts/faults", *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if " | " in line]
    assert [row[0] for row in rows[1:]] == names
    if skipped := [row for row in rows if row[1].startswith("not tried")]:
        skip_or_fail(str(skipped))


@pytest.mark.slow("faults")
def test_a_short_soak() -> None:
    # Too short to judge memory by: what fills up in the first minutes still grows.
    done = subprocess.run(
        [sys.executable, "scripts/soak", "--minutes", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    problems = done.stdout.rpartition("\n\n")[2].splitlines()
    others = [line for line in problems if not line.startswith("memory grew")]
    assert done.returncode == 0 or not others, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("resident", "share"),
    [
        # Before each round and after it.
        ([500, 510], 1.02),
        ([500, 540, 540, 545], 545 / 540),
        ([500, 540, 540, 590, 590, 640], 640 / 590),
    ],
    ids=["stays", "stays from the second round on", "grows each time"],
)
def test_memory_that_grows_each_time_is_told_from_a_heap_that_fills(
    resident: list[int], share: float
) -> None:
    looks = iter(resident)
    rounds: list[None] = []
    found = growth(lambda: rounds.append(None), lambda: next(looks), rounds=3, seconds=-1.0)
    assert found == pytest.approx(share)
    assert len(rounds) == len(resident) // 2


def soak_of(resident: list[int], descriptors: list[int]) -> Soak:
    soak = Soak("", "")
    soak.samples = [
        Sample(60.0 * number, memory * MIB, 0, open_files, 9, number)
        for number, (memory, open_files) in enumerate(zip(resident, descriptors, strict=True))
    ]
    return soak


@pytest.mark.parametrize(
    ("resident", "descriptors", "wrong", "said"),
    [
        ([300, 500, 510, 505], [40] * 4, "", "Nothing grew"),
        ([500, 500, 520, 540], [40] * 4, "", "memory grew from 500 to 540 MiB"),
        ([500] * 4, [40, 40, 50, 60], "", "descriptors grew from 40 to 60"),
        ([500] * 4, [40] * 4, "OpenAI: status 500", "1 times OpenAI: status 500"),
    ],
)
def test_what_grows_or_is_wrong_is_told(
    resident: list[int],
    descriptors: list[int],
    wrong: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    soak = soak_of(resident, descriptors)
    soak.wrong.update([wrong] if wrong else [])
    assert report(soak, []) is said.startswith("Nothing")
    assert said in capsys.readouterr().out
