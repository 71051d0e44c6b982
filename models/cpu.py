"""Whether bfloat16 is faster than float32 on this CPU: decided by what the CPU is.

No stop-watch at start: every start of a machine then gives the same pictures. The rules come from
``scripts/bench_dtype`` on the CPUs that they call measured.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
_ZEN3 = 25
"""Family of Zen 3 and Zen 4, of which Zen 4 has AVX512-BF16; Zen 5 is 26."""
_MEASURED_AMD = (25, 17)
_INTEL = "GenuineIntel"
_AMD = "AuthenticAMD"


@dataclass(frozen=True)
class CpuChoice:
    """The answer, and why in words for an operator."""

    bfloat16: bool
    reason: str


def read_cpuinfo(path: Path = CPUINFO) -> str:
    """Return the system's text about its CPUs, empty where there is none (not Linux)."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def choose_by_cpu(cpuinfo: str) -> CpuChoice:
    """Return whether bfloat16 is the faster dtype on the first CPU of a ``/proc/cpuinfo`` text.

    It is with AMX tiles, and with AVX512-BF16 on AMD since Zen 4: on family 25 model 17 (EPYC 9004)
    a full-size image takes 0.43 of its float32 time. On an Intel held to AVX512-BF16 it was slower.
    Others are not measured.
    """
    facts = _first_cpu(cpuinfo)
    if not facts:
        return CpuChoice(False, "this system does not say what its CPU is")
    flags = set(facts.get("flags", "").split())
    if "amx_bf16" in flags:
        return CpuChoice(True, "the CPU has AMX (measured)")
    if "avx512_bf16" not in flags:
        return CpuChoice(False, "the CPU has neither AMX nor AVX512-BF16")
    vendor = facts.get("vendor_id", "unknown vendor")
    kind = (_number(facts.get("cpu family", "")), _number(facts.get("model", "")))
    name = f"{vendor} family {kind[0]} model {kind[1]}"
    if vendor == _INTEL:
        return CpuChoice(False, f"{name} has AVX512-BF16, but no AMX (measured with AMX unused)")
    if vendor != _AMD or kind[0] < _ZEN3:
        return CpuChoice(False, f"{name} has AVX512-BF16, but was not measured")
    known = "measured" if kind == _MEASURED_AMD else "as family 25 model 17, which was measured"
    return CpuChoice(True, f"{name} has AVX512-BF16 ({known})")


def cpu_name(cpuinfo: str) -> str:
    """Return the CPU's name, vendor's numbers included, for reports."""
    facts = _first_cpu(cpuinfo)
    numbers = [f"{word} {facts[key]}" for word, key in _NUMBERS.items() if key in facts]
    return ", ".join([facts.get("model name", "unknown CPU"), *numbers])


_NUMBERS = {"family": "cpu family", "model": "model"}


def _first_cpu(cpuinfo: str) -> dict[str, str]:
    block = re.split(r"\n\s*\n", cpuinfo.strip(), maxsplit=1)[0]
    pairs = (line.partition(":") for line in block.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else -1
