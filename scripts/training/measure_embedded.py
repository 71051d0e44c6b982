"""Print the embedded model's measures, as tables: see `measures` for what each one is.

    scripts/measure_embedded [--count 400] [--model embedded] [--parts figures samplers ...]

`figures` are the eight figures of edits and of pictures from noise, half as many, and then what
fails by kind, colour, background and style; the other parts take a tenth of the count each time.
With --photographs FOLDER the autoencoder alone is measured, on the photographs there.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from models.bundle import ModelBundle
from models.loading.loader import load_bundle
from pipelines.engine.engine import Engine, EngineConfig
from pipelines.request import CONTRACT_SAMPLERS
from scripts.paths import ROOT
from scripts.training import judge as judges
from scripts.training import measures
from scripts.training.data import photographs_in
from scripts.training.judge import Judge
from scripts.training.measures import EDITS, Judged
from server.cpus import set_tensor_threads

STRENGTHS = (0.1, 0.35, 0.6, 0.75, 0.9)


def row(name: str, shares: dict[str, float]) -> str:
    """Return a table's line: the shares in percent, and their mean."""
    cells = [f"{100 * share:.0f}" for share in shares.values()]
    return f"| {name} | {' | '.join(cells)} | {100 * np.mean(list(shares.values())):.1f} |"


def head(first: str) -> str:
    """Return the head of a table of the four attributes."""
    return f"\n| {first} | {' | '.join(EDITS)} | mean |\n|{'---|' * (len(EDITS) + 2)}"


def class_table(pictures: Sequence[Judged], drawings: Sequence[Judged], attribute: str) -> str:
    """Return a table of one attribute's classes, the worst first: how many of the pictures are
    right and what the others were taken for, beside the ``drawings`` that were asked for."""
    head = f"\n| {attribute} | % right | of the drawings | pictures | mistaken for |"
    drawn = measures.by_class(drawings, attribute)
    rows = []
    for name, asked in measures.by_class(pictures, attribute).items():
        right, itself = (
            100 * float(np.mean([one.right(attribute) for one in found]))
            for found in (asked, drawn[name])
        )
        wrong = Counter(one.seen[attribute] for one in asked if not one.right(attribute))
        seen = ", ".join(f"{other or 'no style'} {n}" for other, n in wrong.most_common(3))
        rows.append((right, f"| {name} | {right:.0f} | {itself:.0f} | {len(asked)} | {seen} |"))
    return "\n".join([head, "|---|---|---|---|---|", *(line for _, line in sorted(rows))])


def print_figures(engine: Engine, judge: Judge, count: int) -> None:
    """Print the eight figures, their mean, and the tables by class."""
    edited = measures.from_pictures(engine, judge, count)
    made = measures.from_noise(engine, judge, count // 2)
    report_figures(judge, edited, made)


def report_figures(judge: Judge, edited: Sequence[Judged], made: Sequence[Judged]) -> None:
    """Print the tables of judged edits and pictures from noise."""
    asked = measures.of_edits(measures.edits(len(edited), measures.EDIT_SEED))
    whole = measures.of_scenes(measures.held_out_scenes(len(made), measures.NOISE_SEED))
    drawn = [measures.from_drawings(judge, targets) for targets in (asked, whole)]
    print(head("%"))
    print(row(f"{len(edited)} edits at image_strength 0.35", measures.shares(edited)))
    print(row(f"{len(made)} from noise, cfg_scale 7", measures.shares(made)))
    print(row("the drawings that the edits ask for", measures.shares(drawn[0])))
    print(row("the drawings asked for from noise", measures.shares(drawn[1])))
    both = [*measures.shares(edited).values(), *measures.shares(made).values()]
    print(f"\nMean of the eight figures: {100 * np.mean(both):.1f} %")
    for attribute in ("kind", "colour", "background", "style"):
        print(class_table([*edited, *made], [*drawn[0], *drawn[1]], attribute), flush=True)


def print_samplers(engine: Engine, judge: Judge, count: int) -> None:
    """Print the share of the same edits that each sampler gets right."""
    print(head(f"{count // 10} edits by each sampler"))
    for sampler in CONTRACT_SAMPLERS:
        found = measures.from_pictures(engine, judge, count // 10, sampler=sampler)
        print(row(sampler, measures.shares(found)), flush=True)


def print_strengths(engine: Engine, judge: Judge, count: int) -> None:
    """Print what comes of edits by image_strength, and how alike the pictures stay."""
    print(head(f"{count // 10} edits at each image_strength"))
    for strength in STRENGTHS:
        found = measures.from_pictures(engine, judge, count // 10, image_strength=strength)
        print(row(f"{strength}", measures.shares(found)), flush=True)
    for strength in (0.75, 0.9):
        night = measures.nights(engine, judge, max(8, count // 20), strength)
        share = np.mean([one.right("background") for one in night])
        print(
            f"\nInto a night at {strength}: {100 * share:.0f} % of {len(night)} right", flush=True
        )
    ladder = measures.strength_ladder(engine, max(8, count // 20))
    print("\nSimilarity to the input: " + ", ".join(f"{v:.3f} at {k}" for k, v in ladder.items()))


def print_things(engine: Engine, judge: Judge, count: int) -> None:
    """Print edits of one of several things, and what the judge reads of the drawing asked for."""
    print("\n| things | % right | of the drawing itself | pictures |\n|---|---|---|---|")
    for things in (1, 2, 3):
        made, drawn = (
            measures.of_things(one, judge, things, count // 10) for one in (engine, None)
        )
        right, itself = (
            100 * np.mean([one.right(name) for one in found for name in one.wanted])
            for found in (made, drawn)
        )
        print(f"| {things} | {right:.0f} | {itself:.0f} | {len(made)} |", flush=True)


def print_photographs(bundle: ModelBundle, folder: Path) -> None:
    """Print how well the autoencoder gives back each photograph in ``folder``, in dB."""
    sides = (320, 512)
    print(f"\n| dB in {bundle.dtype} | {' | '.join(f'{side} x {side}' for side in sides)} |")
    print("|---|" + "---|" * len(sides))
    for file in photographs_in(folder):
        found = [measures.photograph_reconstruction(bundle, file, side) for side in sides]
        print(f"| {file.name} | {' | '.join(f'{value:.1f}' for value in found)} |", flush=True)


PARTS: dict[str, Callable[[Engine, Judge, int], None]] = {
    "figures": print_figures,
    "samplers": print_samplers,
    "strengths": print_strengths,
    "things": print_things,
}


def main() -> None:
    set_tensor_threads(0)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--count", type=int, default=400, help="edits of the figures")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--dtype", default="auto", help="auto: as it is served on this machine")
    parser.add_argument("--judge", type=Path, default=ROOT / "tests" / "data" / "judge.safetensors")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--photographs", type=Path, metavar="FOLDER", help="measure these alone")
    options = parser.parse_args()
    if options.photographs is not None:
        bundle = load_bundle(options.model, device="cpu", dtype=options.dtype)
        return print_photographs(bundle, options.photographs)
    judge = judges.load_judge(options.judge)
    print(head("the judge on fresh drawings, %"))
    own = judges.own_accuracy(judge)
    print(row("600", {name: own[name] for name in EDITS}), flush=True)
    bundle = load_bundle(options.model, device="cpu", dtype=options.dtype)
    print(f"\nIn {bundle.dtype}. Autoencoder, held-out scenes: ", end="")
    print(f"{measures.reconstruction(bundle):.1f} dB", flush=True)
    engine = Engine(bundle, EngineConfig())
    engine.start()
    for part in options.parts:
        PARTS[part](engine, judge, options.count)
    engine.drain()


if __name__ == "__main__":
    main()
