#!/usr/bin/env python
"""Train the embedded model, stage by stage, from pictures that it draws itself.

    scripts/train_embedded vae  --steps 4500                  1. the autoencoder
    scripts/train_embedded clip --steps 1500                  2. text and image towers
    scripts/train_embedded unet --phase small --steps 2700    3. the denoiser, 16 x 16 latents
    scripts/train_embedded unet --phase served --steps 5400   4. and 40 x 40, to this step
    scripts/train_embedded export                             writes models/embedded/

Each stage goes on from its checkpoint under .training/ if there is one, stops after --minutes, and
logs a table and sample sheets. The model that ships took these numbers of steps, in stretches whose
planned totals, and so learning rates, differed a little; more steps make a better one, and `unpack`
turns the exported folder back into checkpoints to go on from. CPU and CUDA take the same commands.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from training.stages import main

if __name__ == "__main__":
    main()
