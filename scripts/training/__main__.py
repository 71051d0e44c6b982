"""Train the embedded model, stage by stage, from pictures that it draws itself.

    scripts/train_embedded vae  --steps 4500                  1. the autoencoder
    scripts/train_embedded clip --steps 1500                  2. text and image towers
    scripts/train_embedded unet --phase small --minutes 90    3. the denoiser, 16 x 16 latents
    scripts/train_embedded unet --minutes 400                 4. and 40 x 40
    scripts/train_embedded export                             writes models/embedded/

Each stage goes on from its checkpoint under .training/ if there is one, and logs a table and
sample sheets. Where there is none at all, `unet` and `sharpen`, which trains the decoder alone, go
on from what ships: one command trains on,

    scripts/train_embedded unet --minutes 60 --learning-rate 2e-4
    scripts/train_embedded sharpen --minutes 30 --photographs FOLDER

may be ended at any moment (Ctrl-C, SIGTERM), and goes on when it is given again. The learning rate
falls to zero over the minutes; without any it stays, and they train until they are ended. `all`
gives each stage that many, and the U-Net's two phases no other end. Export takes the mean of what
was reached and of the start, or other shares by --start-share: judge both by
`scripts/measure_embedded`. On CUDA it is all the same.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from scripts.paths import ROOT
from scripts.training.stages import STAGES, run_stage
from scripts.training.unet import PHASES
from server.cpus import set_tensor_threads


def main() -> None:
    """Run one stage, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--steps", type=int, help="steps of the stage in all")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="end this stretch after so long"
    )
    parser.add_argument("--phase", choices=list(PHASES), default="served", help="of the U-Net")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--ema", type=float, default=0.999, help="decay of the averaged weights")
    parser.add_argument("--photographs", type=Path, help="a folder of some, for `sharpen`")
    parser.add_argument(
        "--start-share", type=float, default=0.5, help="of the start's weights in an export"
    )
    parser.add_argument("--folder", type=Path, default=ROOT / ".training" / "embedded")
    parser.add_argument("--output", type=Path, default=ROOT / "models" / "embedded")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="0: as the server would")
    options = parser.parse_args()
    if options.stage == "all" and options.minutes == math.inf:
        parser.error("all needs --minutes, for each stage: without, its U-Net would train for ever")
    set_tensor_threads(options.threads)
    stages = ["vae", "clip", "unet", "export"] if options.stage == "all" else [options.stage]
    for stage in stages:
        run_stage(stage, options)


if __name__ == "__main__":
    main()
