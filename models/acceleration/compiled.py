"""The parts of a model compiled by torch.compile, and the cache that makes a second start warm.

Compiled forms stand beside the parts, not in their place: they are for the sizes that an operator
configured, and whatever else comes (another size, circular padding, a gradient through the U-Net)
takes the parts as they are, so that no request ever waits for a compiler.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from models.bundle import CompiledParts, ModelBundle

logger = logging.getLogger(__name__)


def compile_parts(
    bundle: ModelBundle,
    sizes: Collection[tuple[int, int]],
    rows: Collection[int],
    *,
    autotune: bool,
    backend: str = "inductor",
) -> CompiledParts:
    """Wrap the parts; each compiles when it is first called with a shape.

    The whole of each part and without a break (``fullgraph``): convolutions and group norms are
    over half of the U-Net's work, and fusing between blocks is what a compiler gains there. No
    CUDA graphs of its own: the step is captured by us (`models/acceleration/cuda_graphs.py`).
    """
    mode = "max-autotune-no-cudagraphs" if autotune else None

    def compiled(part: Any) -> Any:
        return torch.compile(part, fullgraph=True, dynamic=False, mode=mode, backend=backend)

    vae, text_encoder = bundle.vae, bundle.text_encoder

    def encode(picture: torch.Tensor) -> torch.Tensor:
        if not hasattr(vae, "quant_conv"):  # an AutoencoderTiny
            latents: torch.Tensor = vae.encode(picture, return_dict=False)[0]
            return latents
        moments = vae.encoder(picture)
        encoded: torch.Tensor = moments if vae.quant_conv is None else vae.quant_conv(moments)
        return encoded

    def decode(latents: torch.Tensor) -> torch.Tensor:
        decoded: torch.Tensor = vae.decode(latents, return_dict=False)[0]
        return decoded

    # A compilation for each shape, with constants in it: minutes at the first start, once.
    shapes = len(sizes) * len(rows)
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, shapes + 8)
    return CompiledParts(
        sizes=frozenset(sizes),
        rows=frozenset(rows),
        text_length=bundle.text_length,
        unet=compiled(bundle.unet),
        encode=compiled(encode),
        decode=compiled(decode),
        text_encoder=compiled(text_encoder),
    )


class CompileCache:
    """Artefacts of torch.compile in one file, for a model on a device.

    Its name says what it was compiled for: anything else that runs compiles anew. The compiler's
    own cache is kept beside it, because the file lacks what a C++ compiler made on a CPU, and
    torch's own place for it, the folder for temporary files, does not outlive a restart. Both hold
    code that will run: keep the folder as safe as the weights' (the server makes it for its own
    user alone).
    """

    def __init__(self, folder: Path, bundle: ModelBundle, mode: str) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            logger.warning("compiled code cannot be kept in %s: %s", folder, error)
        else:
            # The one way that torch offers to say where; an operator's own choice stays.
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
        self.path = folder / f"{_fingerprint(bundle, mode)}.torch-compile"

    def load(self) -> bool:
        """Load the artefacts and return whether there were any; a file that cannot be used is left
        aside, and said."""
        try:
            artefacts = self.path.read_bytes()
        except OSError:
            return False
        try:
            return torch.compiler.load_cache_artifacts(artefacts) is not None
        except Exception as error:  # whatever another version of torch makes of the bytes
            logger.warning("compiled code in %s cannot be used: %s", self.path.name, error)
            return False

    def save(self) -> bool:
        """Keep what was compiled so far; False where nothing was, or it cannot be written."""
        made = torch.compiler.save_cache_artifacts()
        if made is None:
            return False
        artefacts, _ = made
        unfinished = self.path.with_suffix(".part")
        try:
            unfinished.write_bytes(artefacts)
            unfinished.replace(self.path)
        except OSError as error:
            logger.warning("compiled code cannot be kept in %s: %s", self.path.parent, error)
            return False
        return True


def _fingerprint(bundle: ModelBundle, mode: str) -> str:
    device = bundle.device
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        hardware = f"{properties.name} {properties.major}.{properties.minor}"
    else:
        hardware = str(torch.backends.cpu.get_cpu_capability())
    configs = [dict(part.config) for part in (bundle.unet, bundle.vae)]
    quantized = bundle.facts.get("quantized", "off")
    facts = [torch.__version__, hardware, str(bundle.dtype), quantized, mode, configs]
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
