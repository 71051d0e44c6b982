"""How many CPUs a process may use, from trees that look like /proc and /sys."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.cpus import Cpus, picture_places, tensor_threads, usable_cpus
from server.settings import Settings

V1_CPU = "sys/fs/cgroup/cpu,cpuacct"


def _tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def _v1(folder: str, quota: int, period: int = 100_000) -> dict[str, str]:
    return {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": f"{period}"}


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({}, 64),
        # v2 in a container: the mount is its group.
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "400000 100000\n"}, 4),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 64),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "1000 100000"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "25000 10000"}, 3),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "9900000 100000"}, 64),
        # v2 on a host: the least of the group's and its parents', of which the root has no file.
        (
            {
                "proc/self/cgroup": "0::/system.slice/img2img.service\n",
                "sys/fs/cgroup/cgroup.controllers": "cpuset cpu io\n",
                "sys/fs/cgroup/system.slice/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/system.slice/img2img.service/cpu.max": "max 100000\n",
            },
            3,
        ),
        # A group that is not this process's bounds nothing.
        (
            {
                "proc/self/cgroup": "0::/a\n",
                "sys/fs/cgroup/cgroup.controllers": "cpu\n",
                "sys/fs/cgroup/a/cpu.max": "max 100000\n",
                "sys/fs/cgroup/b/cpu.max": "100000 100000\n",
            },
            64,
        ),
        # v1, with a namespace of its own or on a host.
        ({"proc/self/cgroup": "4:cpu,cpuacct:/\n"} | _v1(V1_CPU, 250_000), 3),
        ({"proc/self/cgroup": "4:cpu,cpuacct:/\n"} | _v1(V1_CPU, -1), 64),
        ({"proc/self/cgroup": "4:cpu,cpuacct:/\n"} | _v1(V1_CPU, 100_000, 0), 64),
        # v1 in a container that sees the host's path, of which it has the end alone.
        (
            {"proc/self/cgroup": "4:cpuacct,cpu:/docker/ab12\n"}
            | _v1("sys/fs/cgroup/cpu", 500_000),
            5,
        ),
        (
            {"proc/self/cgroup": "4:cpu:/kubepods/pod1/c\n1:memory:/x\n"}
            | _v1("sys/fs/cgroup/cpu/kubepods/pod1/c", 700_000)
            | _v1("sys/fs/cgroup/cpu/kubepods/pod1", 600_000)
            | _v1("sys/fs/cgroup/cpu/kubepods", -1),
            6,
        ),
        # v1 and v2 side by side: the CPU controller is in v1.
        (
            {"proc/self/cgroup": "4:cpu:/\n0::/init\n", "sys/fs/cgroup/unified/cgroup.procs": ""}
            | _v1("sys/fs/cgroup/cpu", 200_000),
            2,
        ),
        # Only the memory controller's group is bounded.
        ({"proc/self/cgroup": "4:memory:/\n"} | _v1("sys/fs/cgroup/cpu", 200_000), 64),
        # A group inside the container's, which sees the host's path: v1, v2, mounted elsewhere.
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/docker/ab/inner\n",
                "proc/self/mountinfo": f"31 25 0:27 /docker/ab /{V1_CPU} ro,nosuid master:9"
                " - cgroup cgroup rw,cpu,cpuacct\n",
            }
            | _v1(V1_CPU, 800_000)
            | _v1(f"{V1_CPU}/inner", 200_000),
            2,
        ),
        (
            {
                "proc/self/cgroup": "0::/docker/ab/inner\n",
                "proc/self/mountinfo": "nonsense\n30 23 0:26 /docker/other /mnt rw - cgroup2 c rw\n"
                "31 23 0:26 /docker/ab /groups rw - cgroup2 cgroup rw\n",
                "mnt/cpu.max": "100000 100000\n",
                "groups/cpu.max": "800000 100000\n",
                "groups/inner/cpu.max": "300000 100000\n",
            },
            3,
        ),
        # Outside of the namespace; broken files.
        ({"proc/self/cgroup": "0::/../b\n", "sys/fs/cgroup/b/cpu.max": "100000 100000"}, 64),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": ""}, 64),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "a lot"}, 64),
        ({"proc/self/cgroup": "nonsense\n::\n", "sys/fs/cgroup/cpu.max": "max"}, 64),
    ],
)
def test_the_containers_quota_bounds_the_cpus(
    tmp_path: Path, files: dict[str, str], count: int
) -> None:
    assert usable_cpus(_tree(tmp_path, files), affinity=64).count == count


def test_it_says_what_bounds_them(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "350000 100000\n"}
    assert usable_cpus(_tree(tmp_path, files), 8) == Cpus(4, "a quota of 3.5 CPUs, /sys/fs/cgroup")
    assert usable_cpus(tmp_path, 3) == Cpus(3, "its affinity")
    assert usable_cpus(tmp_path, 0).count == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_the_affinity_is_the_processes(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cpus(tmp_path) == Cpus(1, "its affinity")
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("asked", "own", "usable", "threads"),
    [(0, 64, 4, 4), (0, 1, 4, 1), (0, 32, 64, 32), (12, 64, 4, 12), (0, 0, 0, 1)],
)
def test_threads_of_a_tensor_operation(asked: int, own: int, usable: int, threads: int) -> None:
    assert tensor_threads(asked, own, usable) == threads


def test_decoders_and_encoders_follow_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [picture_places(n) for n in (1, 2, 4, 64)] == [2, 2, 4, 8]
    monkeypatch.setattr("server.settings.limits.usable_cpus", lambda: Cpus(5, "a test"))
    assert Settings().picture_places == 5
    assert Settings(picture_threads=64).picture_places == 64
