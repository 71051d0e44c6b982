"""Stable Diffusion 1.x made narrow: the very configuration of `models/sd15`, with fewer channels.

Same blocks, same names, same tokenizer, so that single files are tested in milliseconds.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from models.loading.checkpoint import SD15_FOLDER

TEXT_WIDTH = 32

_NARROW: dict[str, dict[str, Any]] = {
    "unet": {
        "block_out_channels": [16, 32, 32, 32],
        "cross_attention_dim": TEXT_WIDTH,
        "norm_num_groups": 8,
        "attention_head_dim": 2,
    },
    "vae": {"block_out_channels": [8, 8, 16, 16], "norm_num_groups": 4},
    "text_encoder": {
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
}


def write_configuration(folder: Path) -> Path:
    """Write the folder, without weights."""
    shutil.copytree(SD15_FOLDER, folder)
    for part, fewer in _NARROW.items():
        path = folder / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fewer))
    return folder
