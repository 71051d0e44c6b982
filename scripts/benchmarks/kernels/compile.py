"""Compile every Triton kernel for cards that are not here; print registers, spills, access widths.

    .venv/bin/python scripts/compile_kernels [--few] [80 86 89 90]

``--few`` takes one of each kernel. Needs triton and no card; Triton keeps what it compiled, so a
second run is quick. It ends with 1 where a kernel spills registers.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Print a line a specialisation and card, and their count."""
    os.environ.pop("TRITON_INTERPRET", None)  # which triton reads when it is imported
    from scripts.benchmarks.kernels.machine_code import CAPABILITIES, compile_for, specialisations

    few = "--few" in sys.argv
    wanted = [int(given) for given in sys.argv[1:] if given.isdigit()] or list(CAPABILITIES)
    every = {made.kernel.__name__: made for made in specialisations()} if few else {}
    spilling = 0
    for capability in wanted:
        count = 0
        for made in every.values() or specialisations():
            code = compile_for(made, capability)
            spilling += code.spills > 0
            count += 1
            print(f"sm_{capability} {made.name}: {code}")
        print(f"sm_{capability}: {count} specialisations")
    sys.exit(1 if spilling else 0)


if __name__ == "__main__":
    main()
