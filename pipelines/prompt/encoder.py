"""Prompts to CLIP text states.

Stable Diffusion 1.x reads the last hidden states of CLIP's text tower, 77 tokens long, padding
unmasked. A longer text is encoded in chunks of 75 tokens, each with its own start and end, and the
states are joined; BREAK starts a new chunk; the shorter text of a pair is padded with empty chunks.
Nothing is cut silently.

A token's states are multiplied by its weight (`pipelines.prompt.weights`). The chunk is then
scaled so that its mean is what it was, as A1111 does by default. That only means something where
the mean is not near zero. Where it is below a hundredth of the standard deviation, as with the
embedded model, the ratio of two means would be chance, and the weighted states stay as they are.

A textual inversion's word is looked for in the text as CLIP lower-cases it, and stands for its rows
of the text encoder's table; they are never torn apart by the end of a chunk.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from models.bundle import ModelBundle
from models.clip_words import clip_normalized
from models.device import upload
from pipelines.cache import ByteCache, CacheCounts
from pipelines.prompt.weights import parse_weights

_TRUSTED_MEAN = 0.01
"""Mean over standard deviation of a chunk's states above which the mean is restored."""


@dataclass(frozen=True)
class Chunk:
    """Up to 75 token ids, without start, end and padding, and a weight for each."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]


EMPTY = Chunk((), ())


@dataclass(frozen=True)
class PromptChunks:
    """A prompt and its negative prompt as chunks; at least one of each."""

    prompt: tuple[Chunk, ...]
    negative_prompt: tuple[Chunk, ...]

    @property
    def longest(self) -> int:
        """Chunks of the longer of the two, which both are padded to."""
        return max(len(self.prompt), len(self.negative_prompt))

    @property
    def total(self) -> int:
        """Chunks that are encoded for it, unless they are cached."""
        return len(self.prompt) + len(self.negative_prompt)


class PromptEncoder:
    """Encodes texts with a bundle's text tower and remembers the latest, within a byte budget.

    `read` and `chunks` may be called from any thread, all else from the engine's alone.
    """

    def __init__(self, bundle: ModelBundle, cache_bytes: int = 64 * 2**20) -> None:
        self._bundle = bundle
        self._words = _words_pattern(bundle.embeddings)
        self._cache: ByteCache[Chunk, torch.Tensor] = ByteCache(
            cache_bytes, size_of=lambda states: states.nbytes
        )
        # The first call may change how the tokenizer truncates; after that none changes anything.
        self._tokens([""])

    @property
    def counts(self) -> CacheCounts:
        return self._cache.counts

    def read(self, prompt: str, negative_prompt: str) -> PromptChunks:
        """Return both texts as chunks: the one time that a request's texts are tokenised."""
        return PromptChunks(self.chunks(prompt), self.chunks(negative_prompt))

    def encode(self, texts: PromptChunks) -> torch.Tensor:
        """Return the text states of (negative prompt, prompt), (2, 77 * chunks, width)."""
        both = (texts.negative_prompt, texts.prompt)
        padded = [[*chunks, *[EMPTY] * (texts.longest - len(chunks))] for chunks in both]
        return torch.stack([torch.cat([self._states(c) for c in chunks]) for chunks in padded])

    def encode_pair(self, prompt: str, negative_prompt: str) -> torch.Tensor:
        """Return the text states of two texts, in the order of `encode`."""
        return self.encode(self.read(prompt, negative_prompt))

    def length(self, texts: PromptChunks) -> int:
        """Return how many tokens long the text states of ``texts`` are."""
        return texts.longest * self._bundle.text_length

    def tokens(self, prompt: str, negative_prompt: str) -> int:
        """Return the length that the pair's text states will have, without encoding them."""
        return self.length(self.read(prompt, negative_prompt))

    def chunks(self, text: str) -> tuple[Chunk, ...]:
        """Return the chunks of a text; at least one."""
        room = self._bundle.text_length - 2
        chunks: list[list[tuple[int, float]]] = [[]]
        fragments = parse_weights(text)
        for fragment, units in zip(
            fragments, self._units([f.text for f in fragments]), strict=True
        ):
            if fragment.breaks:
                chunks.append([])
            for unit in units:
                if len(chunks[-1]) + len(unit) > room and len(unit) <= room:
                    chunks.append([])
                for token in unit:
                    if len(chunks[-1]) == room:
                        chunks.append([])
                    chunks[-1].append((token, fragment.weight))
        return tuple(
            Chunk(tuple(t for t, _ in chunk), tuple(w for _, w in chunk)) for chunk in chunks
        )

    def _units(self, texts: Sequence[str]) -> list[list[Sequence[int]]]:
        """Return the token ids of each text in runs that stay together: tokens, learnt words."""
        if self._words is None:
            return [[(token,) for token in ids] for ids in self._tokens(texts)]
        # Splitting by a pattern in a group puts the words at the odd places.
        split = [self._words.split(clip_normalized(text)) for text in texts]
        plain = iter(self._tokens([piece for pieces in split for piece in pieces[::2]]))
        units: list[list[Sequence[int]]] = []
        for pieces in split:
            units.append([])
            for i, piece in enumerate(pieces):
                if i % 2:
                    units[-1].append(self._bundle.embeddings[piece])
                else:
                    units[-1] += [(token,) for token in next(plain)]
        return units

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each of the texts, at least one, in one call: each costs."""
        tokenizer = self._bundle.tokenizer
        return list(tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids)

    def _states(self, chunk: Chunk) -> torch.Tensor:
        """Return one chunk's states, (77, width)."""
        # One chunk a forward: a text's states never depend on what it is encoded beside.
        return self._cache.get_or_make(chunk, lambda: self._forward(chunk))

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
    """Return what finds any of the words, the longest first, where it stands alone.

    Words and text are as `clip_normalized` writes them: a pattern that ignores case by itself
    finds letters that lower-casing does not lead to, such as the long s and the dotless i.
    """
    if not embeddings:
        return None
    words = "|".join(re.escape(word) for word in sorted(embeddings, key=len, reverse=True))
    return re.compile(rf"(?<!\w)({words})(?!\w)")
