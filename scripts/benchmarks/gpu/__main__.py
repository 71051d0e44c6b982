"""What this server makes of a GPU, beside diffusers as a user writes it.

.venv/bin/python scripts/bench_gpu                # CUDA, no network, under 4 minutes
.venv/bin/python scripts/bench_gpu --only unet    # one part; may be given again
.venv/bin/python scripts/bench_gpu --narrow       # the same from end to end on a CPU
.venv/bin/python scripts/bench_gpu --page         # measures nothing, makes the page anew

Results go to gpu.json as they are measured, and the page gpu.md is made from it: in docs/benchmarks
on a card, in the folder of --out anywhere. A run that is cut off leaves both.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from pathlib import Path

import torch

from scripts.benchmarks.gpu.plan import PARTS
from scripts.paths import ROOT

PAGES = ROOT / "docs" / "benchmarks"


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--narrow", action="store_true", help="a narrow model, small pictures")
    add("--only", action="append", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    add("--minutes", type=float, default=3.9, help="in all; what does not fit is left out")
    add("--out", type=Path, metavar="FOLDER", help="where gpu.json and gpu.md go")
    add("--page", action="store_true", help="make gpu.md of the gpu.json there is")
    return parser.parse_args()


def main() -> int:
    """Measure, make the page, print it; 1 where pictures or forwards were wrong or unmeasured."""
    options = parse()
    folder: Path | None = options.out
    if not options.page and not torch.cuda.is_available() and not options.narrow:
        print("there is no CUDA device; --narrow runs the same on a CPU", file=sys.stderr)
        return 2
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Threads that wait must not spin: the load generator needs the cores too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from scripts.benchmarks.gpu.report import good, write_page  # imports diffusers: seconds
    from scripts.benchmarks.gpu.run import run_all

    if options.page:
        write_page(folder or PAGES)
        return 0
    if folder is None and (options.narrow or options.only):
        # Neither is a page of a card: it is printed, and goes.
        folder = Path(tempfile.mkdtemp(prefix="bench-gpu-page-"))
    folder = folder or PAGES
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "gpu.md"
    run_all(
        folder / "gpu.json",
        options.only or PARTS,
        narrow=options.narrow,
        minutes=options.minutes,
        command=shlex.join([".venv/bin/python", "scripts/bench_gpu", *sys.argv[1:]]),
        make_page=lambda: write_page(folder),
    )
    print(f"\n{page.read_text()}\nwrote {page}")
    return 0 if good(folder / "gpu.json", options.only or PARTS) else 1


if __name__ == "__main__":
    sys.exit(main())
