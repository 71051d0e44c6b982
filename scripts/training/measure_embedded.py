"""Print the embedded model's measures: see `measures` for what each one is.

.venv/bin/python scripts/measure_embedded [--count 200] [--model embedded]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from models.loading.loader import load_bundle
from pipelines.engine.engine import Engine, EngineConfig
from scripts.paths import ROOT
from scripts.training import judge as judges
from scripts.training import measures


def percent(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--count", type=int, default=200, help="pictures of each measure")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--judge", type=Path, default=ROOT / "tests" / "data" / "judge.safetensors")
    options = parser.parse_args()
    judge = judges.load_judge(options.judge)
    print(f"judge on fresh drawings: {percent(judges.own_accuracy(judge))}", flush=True)
    bundle = load_bundle(options.model, device="cpu", dtype="float32")
    print(f"autoencoder, held-out scenes: {measures.reconstruction(bundle):.1f} dB", flush=True)
    engine = Engine(bundle, EngineConfig())
    engine.start()
    count = options.count
    print(f"edits ({count}): {percent(measures.from_pictures(engine, judge, count))}", flush=True)
    for cfg_scale in (7.0, 1.0):
        shares = measures.from_noise(engine, judge, count, cfg_scale=cfg_scale)
        print(f"from noise, cfg_scale {cfg_scale:g} ({count}): {percent(shares)}", flush=True)
    ladder = measures.strength_ladder(engine, max(8, count // 8))
    print(
        "similarity to the input: " + ", ".join(f"{k} at {v:.3f}" for k, v in ladder.items()),
        flush=True,
    )
    engine.drain()


if __name__ == "__main__":
    main()
