"""How many CPUs this process may use: its affinity and its containers' quotas, not the host's.

A tensor operation on more threads than that waits for threads that the kernel has put to sleep:
a container of 4 CPUs on a host of 64 ran 64 threads.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_MOST_PICTURES = 8
"""Decoders at most, unless asked for: each may take hundreds of MiB."""


@dataclass(frozen=True)
class Cpus:
    """CPUs that may be used, at least 1, and what bounds them, in words."""

    count: int
    reason: str


def usable_cpus(root: Path = Path("/"), affinity: int | None = None) -> Cpus:
    """Return what this process may use: the least of its affinity and every quota above it.

    A quota is ``cpu.max`` (cgroup v2) or ``cpu.cfs_quota_us`` (v1) of the process's group or of one
    of its parents; part of a CPU counts as a whole one. ``root`` is the folder that has ``proc``
    and ``sys``. What cannot be read bounds nothing.
    """
    own = affinity if affinity is not None else _affinity()
    least = Cpus(max(1, own), "its affinity")
    for folder in _groups(root):
        if (quota := _quota(folder)) is None:
            continue
        count = max(1, math.ceil(quota))
        if count < least.count:
            least = Cpus(count, f"a quota of {quota:g} CPUs, /{folder.relative_to(root)}")
    return least


def tensor_threads(asked: int, torch_own: int, usable: int) -> int:
    """Return the threads of a tensor operation: ``asked``, if not 0.

    Else torch's own number (its physical cores, or OMP_NUM_THREADS) as far as it is ``usable``.
    """
    return asked or max(1, min(torch_own, usable))


def picture_places(usable: int) -> int:
    """Return how many pictures are decoded or encoded at once: one a CPU.

    There are two on one CPU, so that a picture that takes long does not hold up the others.
    """
    return min(max(2, usable), _MOST_PICTURES)


def set_tensor_threads(asked: int) -> int:
    """Give torch its number of threads (`tensor_threads`), and return it."""
    import torch

    threads = tensor_threads(asked, torch.get_num_threads(), usable_cpus().count)
    torch.set_num_threads(threads)
    return threads


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _groups(root: Path) -> Iterator[Path]:
    """Yield the folders of the process's groups that may bound its CPUs, with all their parents.

    In a container the group's path may be the host's, of which the mount shows the end alone, as
    its own line says. Where none does, what does not exist is passed over, up to the mount itself.
    """
    mounts = root / "sys/fs/cgroup"
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            places = [mounts, mounts / "unified"]
        elif "cpu" in controllers.split(","):
            places = [mounts / controllers, mounts / "cpu"]
        else:
            continue
        mount = next((place for place in places if _bounds(place)), places[0])
        own, top = PurePosixPath("/", path.lstrip("/")), PurePosixPath("/")
        for other, shown in _mounts(root, "cpu" if controllers else ""):
            if own.is_relative_to(shown):
                mount, top = other, shown
                break
        parts = own.relative_to(top).parts
        inside = () if ".." in parts else parts  # outside of what this namespace can see
        for depth in range(len(inside), -1, -1):
            yield mount.joinpath(*inside[:depth])


def _mounts(root: Path, controller: str) -> Iterator[tuple[Path, PurePosixPath]]:
    """Yield where groups are mounted, of v1's controller or of v2, and which group is on top."""
    for line in (_text(root / "proc/self/mountinfo") or "").splitlines():
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if len(fields) < 5 or len(kinds) < 3:
            continue
        if (kinds[0] == "cgroup" and controller in kinds[2].split(",")) or (
            kinds[0] == "cgroup2" and not controller
        ):
            yield root / fields[4].lstrip("/"), PurePosixPath(fields[3])


def _bounds(mount: Path) -> bool:
    """Whether a mount has the CPU controller, of v1 or v2 (whose root has no ``cpu.max``)."""
    if (mount / "cpu.cfs_quota_us").exists() or (mount / "cpu.max").exists():
        return True
    return "cpu" in (_text(mount / "cgroup.controllers") or "").split()


def _quota(folder: Path) -> float | None:
    """Return the CPUs that a group may use, by v2 or v1, or None where nothing bounds them."""
    if (both := _text(folder / "cpu.max")) is not None:
        texts = both.split()
    else:
        texts = [
            _text(folder / "cpu.cfs_quota_us") or "",
            _text(folder / "cpu.cfs_period_us") or "",
        ]
    try:
        quota, period = (int(text) for text in texts)
    except ValueError:  # "max", or no such files
        return None
    return quota / period if quota > 0 and period > 0 else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None
