"""Take kernels that were compiled ahead of time: a first start then compiles nothing.

An image's build compiles them (`models/compile_kernels.py`). A start copies from there what
Triton's own cache lacks: that one is to be written to, outlives the container, and may be older
than the image.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)

COMPILED = Path(sys.prefix) / "share" / "img2img" / "triton"
"""Where an image has them."""

CACHE_VARIABLE = "TRITON_CACHE_DIR"


def use_compiled(compiled: Path = COMPILED) -> int:
    """Copy what Triton's cache lacks of ``compiled`` into it; return how many kernels that were."""
    if not compiled.is_dir():
        return 0
    cache = Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".triton" / "cache")
    copied = 0
    try:
        cache.mkdir(parents=True, exist_ok=True)
        for kernel in compiled.iterdir():
            target = cache / kernel.name
            if target.exists():
                continue
            # Whole at once: other processes may look, or be at the same.
            with tempfile.TemporaryDirectory(dir=cache, prefix="copy-") as folder:
                made = shutil.copytree(kernel, Path(folder) / kernel.name)
                try:
                    made.rename(target)
                except OSError:  # ENOTEMPTY, where another process was first
                    if not target.exists():
                        raise
                else:
                    copied += 1
    except OSError as error:
        logger.warning("compiled kernels could not be copied to %s: %s", cache, error)
    return copied
