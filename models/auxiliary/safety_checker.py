"""Stable Diffusion's own safety checker: how near a picture is to what it was told to hold back.

The model is diffusers' StableDiffusionSafetyChecker: a CLIP image tower, 17 concept embeddings and
3 of special care, each with its own threshold. Its forward blackens pictures in place and tells no
score; here its parts are used for the score alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image

from models.loading.clip import normalization
from models.loading.folder import part_files
from models.loading.parts import fill, make_safety_checker, transformers_clip_names

SPECIAL_CARE = 0.01
"""What every concept's score rises by in a picture that is near a concept of special care."""


@dataclass(eq=False)
class SafetyModel:
    """A checker on its device."""

    name: str
    checker: Any
    mean: torch.Tensor  # (3,)
    std: torch.Tensor  # (3,)

    @property
    def side(self) -> int:
        """The side of the pictures it reads, in pixels."""
        return int(self.checker.config.vision_config.image_size)

    def scores(self, pictures: Sequence[npt.NDArray[np.uint8]]) -> list[float]:
        """The highest of each picture's concept scores, rounded to three places as upstream.

        A score is the cosine of picture and concept less the concept's own threshold: above 0 is
        what Stable Diffusion's pipelines hold back. ``pictures`` are (H, W, 3) uint8.
        """
        checker = self.checker
        batch = torch.stack([self._pixels(picture) for picture in pictures])  # (N, 3, s, s)
        with torch.inference_mode():
            pooled = checker.vision_model(batch.to(checker.dtype))[1]
            image = F.normalize(checker.visual_projection(pooled), dim=-1)
            special = image @ F.normalize(checker.special_care_embeds, dim=-1).T
            concept = image @ F.normalize(checker.concept_embeds, dim=-1).T
        care = (special.float() - checker.special_care_embeds_weights.float()).cpu().double()
        margin = (concept.float() - checker.concept_embeds_weights.float()).cpu().double()
        raised = (care.numpy().round(3) > 0).any(axis=1, keepdims=True) * SPECIAL_CARE
        highest = (margin.numpy() + raised).round(3).max(axis=1)
        return [float(score) for score in highest]

    def _pixels(self, picture: npt.NDArray[np.uint8]) -> torch.Tensor:
        """As CLIP's image processor: shorter side to size, bicubic, centre crop, normalised."""
        image = Image.fromarray(picture)
        scale = self.side / min(image.size)
        size = tuple(max(self.side, int(length * scale)) for length in image.size)
        image = image.resize((size[0], size[1]), Image.Resampling.BICUBIC)
        left, top = (size[0] - self.side) // 2, (size[1] - self.side) // 2
        image = image.crop((left, top, left + self.side, top + self.side))
        pixels = torch.from_numpy(np.array(image)).to(self.mean.device).float() / 255
        return ((pixels - self.mean) / self.std).permute(2, 0, 1)


def load_safety(
    folder: Path, *, name: str, device: torch.device, dtype: torch.dtype
) -> SafetyModel:
    """Load a checker's folder, safetensors only; its image processor's beside it is read too.

    Raises ModelLoadError.
    """
    # Scores are rounded to three places, more than half precision has; a GPU's time is dearer.
    precision = torch.float32 if device.type == "cpu" else dtype
    checker = fill(
        make_safety_checker(folder),
        part_files(folder, precision),
        transformers_clip_names,
        device=device,
        dtype=precision,
        what=str(folder),
    )
    processor = folder / "preprocessor_config.json"
    if not processor.is_file():
        processor = folder.parent / "feature_extractor" / "preprocessor_config.json"
    mean, std = normalization(processor)
    return SafetyModel(name, checker, mean.to(device), std.to(device))
