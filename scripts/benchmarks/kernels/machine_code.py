"""Compile the kernels for cards that are not here, and read what the compiler made of them.

Triton's wheel carries ptxas and cuobjdump, and `triton.compile` takes a target: a kernel that a
card would refuse is refused on any Linux machine. Time is the one thing that this does not tell.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from models.acceleration import kernels
from models.acceleration.triton_kernels import NEXT, PROVEN

CAPABILITIES = (80, 86, 89, 90)
_CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


@dataclass(frozen=True)
class Specialisation:
    """A kernel with its constants, as `TritonKernels` launches it for a model's own channels.

    ``multiples`` are the integers that its launcher finds divisible by 16.
    """

    kernel: Any
    constants: dict[str, Any]
    warps: int = 4
    multiples: tuple[str, ...] = ("C",)
    singles: tuple[str, ...] = ()
    half: str = "*fp16"

    @property
    def name(self) -> str:
        values = ", ".join(f"{k} {v}" for k, v in self.constants.items())
        return f"{self.kernel.__name__}({values}), {self.warps} warps"


@dataclass(frozen=True)
class MachineCode:
    """What one specialisation became: registers a thread, spills, accesses by their bits."""

    registers: int
    spills: int
    loads: Counter[int] = field(default_factory=Counter)
    stores: Counter[int] = field(default_factory=Counter)

    def __str__(self) -> str:
        def widths(counts: Counter[int]) -> str:
            return ", ".join(f"{n} of {bits // 8} B" for bits, n in sorted(counts.items()))

        return (
            f"{self.registers} registers, {self.spills} spills, loads {widths(self.loads)}; "
            f"stores {widths(self.stores)}"
        )


def specialisations() -> Iterator[Specialisation]:
    """Every one that Stable Diffusion 1.x needs in half precision, of both geometries."""
    joined = [False, True]
    for block in (32, 64):
        for both in joined:
            yield Specialisation(
                kernels.gn_partial,
                {"JOINED": both, "BH": 32, "BC": block},
                multiples=("c1", "c2"),
                singles=("part",),
            )
            for silu in (False, True) if not both else (True,):
                constants = {"JOINED": both, "SILU": silu, "BH": 2048 // block, "BC": block}
                yield Specialisation(
                    kernels.gn_apply_tile, constants, multiples=("c1", "c2"), singles=("ab",)
                )
    for cpg in (4, 8, 10, 16, 20, 30, 40, 60, 80):
        width = triton.next_power_of_2(cpg)
        for adds in (False, True):
            constants = {"CPG": cpg, "ADDS": adds, "BS": 32, "BG": width}
            yield Specialisation(kernels.gn_fold, constants, singles=("part", "ab"))
    for cpg in (20, 40, 60, 80):
        constants = {"CPG": cpg, "ADDS": True, "SILU": True, "BH": 32}
        constants["BG"] = triton.next_power_of_2(cpg)
        yield Specialisation(kernels.gn_group, constants)
    for silu in (False, True):
        constants = {"SILU": silu, "B": 2048}
        yield Specialisation(kernels.gn_apply, constants, 8, singles=("ab",))
    for adds in (False, True):
        yield Specialisation(kernels.bias_residual, {"ADDS": adds, "B": 2048}, 8)
    yield Specialisation(kernels.interleave, {"B": 2048}, 8)
    for geometry in (PROVEN, NEXT):
        high, wide = geometry.geglu
        yield Specialisation(kernels.geglu, {"BR": high, "B": wide}, multiples=("D",))
        for channels in (320, 640, 1280):
            block = triton.next_power_of_2(channels)
            for adds in (False, True):
                high = max(1, geometry.norm_elements // block)
                constants = {"ADDS": adds, "BR": high, "B": block}
                yield Specialisation(kernels.layer_norm, constants)


def compile_for(made: Specialisation, capability: int) -> MachineCode:
    """Compile and read the machine code. Raises whatever Triton does where it cannot be."""
    signature: dict[str, str] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    kernel = made.kernel
    for position, name in enumerate(kernel.arg_names):
        signature[name] = _type(made, name)
        pointer = signature[name].startswith("*") and not _unaligned(kernel, name)
        if pointer or name in made.multiples:
            attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=made.constants, attrs=attributes)
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": made.warps, "enable_fp_fusion": True},
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, code = (_dump(flag, file.name) for flag in ("-res-usage", "-sass"))
    registers = re.search(r"REG:(\d+)", usage)
    assert registers is not None
    loads, stores = (
        Counter(
            int(bits or 32) for bits in re.findall(rf"\b{op}\.E\.?[A-Z.]*?(16|64|128)?\b", code)
        )
        for op in ("LDG", "STG")
    )
    spills = len(re.findall(r"\b(?:LDL|STL)\b", code))
    return MachineCode(int(registers[1]), spills, loads, stores)


def _type(made: Specialisation, name: str) -> str:
    if name in made.constants:
        return "constexpr"
    if name == "eps":
        return "fp32"
    if name in {"hw", "per", "splits", "rows", "row", "h", "w", "c1", "c2", "C", "D"}:
        return "i32"
    return "*fp32" if name in made.singles else made.half


def _unaligned(kernel: Any, name: str) -> bool:
    parameters = {p.name: p for p in kernel.params}
    return bool(parameters[name].do_not_specialize_on_alignment)


def _dump(flag: str, path: str) -> str:
    done = subprocess.run([_CUOBJDUMP, flag, path], capture_output=True, text=True, check=True)
    return done.stdout
