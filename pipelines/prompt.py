"""Prompts to CLIP text states.

Stable Diffusion 1.x reads the last hidden states of CLIP's text tower, 77 tokens long, padding
unmasked. A longer text is encoded in chunks of 75 tokens, each with its own start and end, and the
states are joined; BREAK starts a new chunk; the shorter text of a pair is padded with empty chunks.
Nothing is cut silently.

A token's states are multiplied by its weight (`pipelines.prompt_weights`). The chunk is then
scaled so that its mean is what it was, as A1111 does by default. That only means something where
the mean is not near zero. Where it is below a hundredth of the standard deviation, as with the
embedded model, the ratio of two means would be chance, and the weighted states stay as they are.

A textual inversion's word is looked for in the text, whatever its case, and stands for its rows of
the text encoder's table; they are never torn apart by the end of a chunk.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from models.bundle import ModelBundle
from models.device import upload
from pipelines.cache import ByteCache, CacheCounts
from pipelines.prompt_weights import parse_weights

_TRUSTED_MEAN = 0.01
"""Mean over standard deviation of a chunk's states above which the mean is restored."""


@dataclass(frozen=True)
class Chunk:
    """Up to 75 token ids, without start, end and padding, and a weight for each."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]


class PromptEncoder:
    """Encodes texts with a bundle's text tower and remembers the latest, within a byte budget.

    Not safe for several threads: the engine's thread owns it.
    """

    def __init__(self, bundle: ModelBundle, cache_bytes: int = 64 * 2**20) -> None:
        self._bundle = bundle
        self._words = _words_pattern(bundle.embeddings)
        self._cache: ByteCache[str, torch.Tensor] = ByteCache(
            cache_bytes, size_of=lambda states: states.nbytes
        )

    @property
    def counts(self) -> CacheCounts:
        return self._cache.counts

    def encode_pair(self, prompt: str, negative_prompt: str) -> torch.Tensor:
        """Text states of (negative prompt, prompt), (2, 77 * chunks, width), in that order."""
        texts = [self._encode(negative_prompt), self._encode(prompt)]
        longest = max(states.shape[0] for states in texts)
        missing = [(longest - states.shape[0]) // self._bundle.text_length for states in texts]
        padded = [
            torch.cat([states, *(self._encode("") for _ in range(count))])
            for states, count in zip(texts, missing, strict=True)
        ]
        return torch.stack(padded)  # (2, T, D)

    def tokens(self, prompt: str, negative_prompt: str) -> int:
        """The length that the pair's text states will have, without encoding them."""
        chunks = max(len(self.chunks(prompt)), len(self.chunks(negative_prompt)))
        return chunks * self._bundle.text_length

    def chunks(self, text: str) -> list[Chunk]:
        """The chunks of a text; at least one."""
        room = self._bundle.text_length - 2
        chunks: list[list[tuple[int, float]]] = [[]]
        for fragment in parse_weights(text):
            if fragment.breaks:
                chunks.append([])
            for unit in self._units(fragment.text):
                if len(chunks[-1]) + len(unit) > room and len(unit) <= room:
                    chunks.append([])
                for token in unit:
                    if len(chunks[-1]) == room:
                        chunks.append([])
                    chunks[-1].append((token, fragment.weight))
        return [Chunk(tuple(t for t, _ in chunk), tuple(w for _, w in chunk)) for chunk in chunks]

    def _units(self, text: str) -> list[list[int]]:
        """Token ids in runs that stay together: single tokens, and a word's learnt rows."""
        if self._words is None:
            return [[token] for token in self._tokens(text)]
        units: list[list[int]] = []
        # Splitting by a pattern in a group puts the words at the odd places.
        for i, piece in enumerate(self._words.split(text)):
            if i % 2:
                units.append(list(self._bundle.embeddings[piece.lower()]))
            else:
                units += [[token] for token in self._tokens(piece)]
        return units

    def _tokens(self, text: str) -> list[int]:
        tokenizer = self._bundle.tokenizer
        return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    def _encode(self, text: str) -> torch.Tensor:
        """One text, (77 * chunks, width)."""
        return self._cache.get_or_make(
            text,
            # One chunk a forward: a text's states never depend on what it is encoded beside.
            lambda: torch.cat([self._forward(chunk) for chunk in self.chunks(text)]),
        )

    def _forward(self, chunk: Chunk) -> torch.Tensor:
        tokenizer, length = self._bundle.tokenizer, self._bundle.text_length
        ids = [tokenizer.bos_token_id, *chunk.ids, tokenizer.eos_token_id]
        ids += [tokenizer.pad_token_id] * (length - len(ids))
        batch = upload(np.array([ids], dtype=np.int64), self._bundle.device)
        compiled = self._bundle.compiled
        encoder = self._bundle.text_encoder if compiled is None else compiled.text_encoder
        states: torch.Tensor = encoder(batch)[0][0]  # (77, D)
        if all(weight == 1.0 for weight in chunk.weights):
            return states
        return weighted(states, chunk.weights)


def weighted(states: torch.Tensor, weights: tuple[float, ...]) -> torch.Tensor:
    """``states`` (77, D) with those of tokens 1.. times ``weights``, in the same dtype.

    The mean over all 77 is restored where it is trusted: see the module.
    """
    factors = torch.ones(len(states), 1, device=states.device)
    factors[1 : 1 + len(weights), 0] = torch.tensor(weights, device=states.device)
    plain = states.float()
    product = plain * factors
    mean, new_mean = plain.mean(), product.mean()
    floor = _TRUSTED_MEAN * plain.std()
    if mean.abs() > floor and new_mean.abs() > floor:
        product = product * (mean / new_mean)
    return product.to(states.dtype)


def _words_pattern(embeddings: Mapping[str, tuple[int, ...]]) -> re.Pattern[str] | None:
    """Finds any of the words, the longest first, where it stands alone."""
    if not embeddings:
        return None
    words = "|".join(re.escape(word) for word in sorted(embeddings, key=len, reverse=True))
    return re.compile(rf"(?<!\w)({words})(?!\w)", re.IGNORECASE)
