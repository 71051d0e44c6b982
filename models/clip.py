"""A CLIP model, text and image tower, that says how well a picture fits a text.

Not the text encoder that the U-Net reads: this one judges, for CLIP guidance. The embedded model
ships its own; Stable Diffusion 1.x is steered by OpenAI's ViT-L/14, whose text tower it reads too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F


@dataclass(eq=False)
class ClipModel:
    """A transformers CLIPModel, its tokenizer, and how it wants its pixels.

    ``mean`` and ``std`` are (3,), of pixels in 0..1.
    """

    name: str
    model: Any
    tokenizer: Any
    mean: torch.Tensor
    std: torch.Tensor

    @property
    def side(self) -> int:
        """The side of the pictures it reads, in pixels."""
        return int(self.model.config.vision_config.image_size)

    def embed_text(self, text: str) -> torch.Tensor:
        """The unit embedding of a text, (D,) float32.

        A text of more than 75 tokens is read in chunks, whose embeddings are averaged.
        """
        tokenizer = self.tokenizer
        room = int(self.model.config.text_config.max_position_embeddings) - 2
        ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        chunks = [ids[i : i + room] for i in range(0, len(ids), room)] or [[]]
        embeddings = []
        for chunk in chunks:
            batch = [[tokenizer.bos_token_id, *chunk, tokenizer.eos_token_id]]
            tokens = torch.tensor(batch, device=self.mean.device)
            pooled = self.model.text_model(tokens).pooler_output
            embeddings.append(F.normalize(self.model.text_projection(pooled)[0].float(), dim=-1))
        return F.normalize(torch.stack(embeddings).mean(dim=0), dim=-1)

    def embed_images(self, pictures: torch.Tensor) -> torch.Tensor:
        """Unit embeddings (N, D) float32 of pictures (N, 3, side, side) in 0..1.

        Differentiable.
        """
        scaled = (pictures - self.mean[:, None, None]) / self.std[:, None, None]
        pooled = self.model.vision_model(scaled.to(self.model.dtype)).pooler_output
        return F.normalize(self.model.visual_projection(pooled).float(), dim=-1)

    def resized(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures (N, 3, H, W) as (N, 3, side, side), whatever their shape."""
        return F.interpolate(
            pictures, (self.side, self.side), mode="bilinear", antialias=True, align_corners=False
        )
