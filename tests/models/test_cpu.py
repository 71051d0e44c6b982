"""The dtype that `auto` takes on a CPU, from texts of /proc/cpuinfo."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models import device
from models.cpu import choose_by_cpu, cpu_name, read_cpuinfo
from models.loading.loader import load_bundle


def _cpuinfo(vendor: str, family: int, model: int, flags: str) -> str:
    """Two CPUs as Linux shows them on x86."""
    return "".join(
        f"processor\t: {n}\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\n"
        f"model name\t: Some CPU\nstepping\t: 1\nflags\t\t: fpu sse2 {flags}\npower management:\n\n"
        for n in range(2)
    )


AVX512 = "avx2 avx512f avx512bw avx512vl"
SAPPHIRE_RAPIDS = _cpuinfo("GenuineIntel", 6, 143, f"{AVX512} avx512_bf16 amx_bf16 amx_tile")
COOPER_LAKE = _cpuinfo("GenuineIntel", 6, 85, f"{AVX512} avx512_bf16")
ICE_LAKE = _cpuinfo("GenuineIntel", 6, 106, AVX512)
GENOA = _cpuinfo("AuthenticAMD", 25, 17, f"{AVX512} avx512_bf16")
TURIN = _cpuinfo("AuthenticAMD", 26, 2, f"{AVX512} avx512_bf16")
MILAN = _cpuinfo("AuthenticAMD", 25, 1, "avx2")
OTHER = _cpuinfo("CentaurHauls", 7, 91, f"{AVX512} avx512_bf16")
GRAVITON = """\
processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd i8mm bf16 sve
CPU implementer\t: 0x41
CPU part\t: 0xd40
"""


@pytest.mark.parametrize(
    ("cpuinfo", "bfloat16", "reason"),
    [
        (SAPPHIRE_RAPIDS, True, "AMX (measured)"),
        (GENOA, True, "AuthenticAMD family 25 model 17 has AVX512-BF16 (measured)"),
        (TURIN, True, "family 26 model 2 has AVX512-BF16 (as family 25 model 17"),
        (MILAN, False, "neither AMX nor AVX512-BF16"),
        (COOPER_LAKE, False, "no AMX"),
        (ICE_LAKE, False, "neither"),
        (OTHER, False, "CentaurHauls family 7 model 91 has AVX512-BF16, but was not measured"),
        (GRAVITON, False, "neither"),
        ("", False, "does not say"),
        ("no colon at all", False, "does not say"),
    ],
)
def test_the_dtype_follows_what_the_cpu_is(cpuinfo: str, bfloat16: bool, reason: str) -> None:
    choice = choose_by_cpu(cpuinfo)
    assert choice.bfloat16 is bfloat16
    assert reason in choice.reason


def test_numbers_that_are_none_do_not_fail() -> None:
    assert not choose_by_cpu(GENOA.replace(": 25", ": ?")).bfloat16


def test_a_system_without_cpuinfo_has_an_empty_text(tmp_path: Path) -> None:
    assert read_cpuinfo(tmp_path / "none") == ""


def test_the_name_has_the_vendors_numbers() -> None:
    assert cpu_name(GENOA) == "Some CPU, family 25, model 17"
    assert cpu_name("") == "unknown CPU"


@pytest.mark.parametrize(
    ("cpuinfo", "expected"), [(GENOA, torch.bfloat16), (COOPER_LAKE, torch.float32)]
)
def test_auto_takes_it_and_a_model_says_why(
    cpuinfo: str, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "read_cpuinfo", lambda: cpuinfo)
    bundle = load_bundle(device="cpu")
    assert bundle.dtype is expected
    name = str(expected).removeprefix("torch.")
    assert bundle.facts["dtype"] == f"{name}, chosen: {choose_by_cpu(cpuinfo).reason}"
    other = load_bundle(device="cpu", dtype="float32")
    assert other.facts["dtype"] == "float32, as asked for"
