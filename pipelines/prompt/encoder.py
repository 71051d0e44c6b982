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
from functools import partial

import numpy as np
import torch

from models.acceleration.cuda_graphs import CapturedPass, Capturer
from models.bundle import ModelBundle
from models.clip_words import clip_normalized
from models.device import upload
from pipelines.cache import ByteCache, CacheCounts
from pipelines.counts import GraphCounts
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

    With a ``capturer`` the pass of one chunk is captured, at the first one: it is many
    small kernels, which the host launches in longer than a card runs them. A compiled text tower
    runs as it is. On CUDA nothing waits for the card.

    `read` and `chunks` may be called from any thread, all else from the engine's alone.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        cache_bytes: int = 64 * 2**20,
        capturer: Capturer | None = None,
    ) -> None:
        self._bundle, self._capturer = bundle, capturer
        self._captured: CapturedPass | None = None
        self.graphs = GraphCounts()
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

    def chunks(self, text: str) -> tuple[Chunk, ...]:
        """Return the chunks of a text; at least one."""
        room = self._bundle.text_length - 2
        chunks: list[list[tuple[int, float]]] = [[]]
        fragments = parse_weights(text)
        for fragment, units in zip(
            fragments, self._units([f.text for f in fragments]), strict=True
        ):
            chunks += ([] for _ in range(fragment.breaks))
            for unit in units:
                if len(chunks[-1]) + len(unit) > room and len(unit) <= room:
                    chunks.append([])
                for token in unit:
                    if len(chunks[-1]) == room:
                        chunks.append([])
                    chunks[-1].append((token, fragment.weight))
        if len(chunks) > 1 and not chunks[-1]:
            chunks.pop()  # What a BREAK at the end has begun; other empty ones count, as in A1111.
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

    def encode_empty(self) -> None:
        """Encode a chunk without text, past the cache; the first run captures what is captured."""
        self._forward(EMPTY)

    def _forward(self, chunk: Chunk) -> torch.Tensor:
        tokenizer, length = self._bundle.tokenizer, self._bundle.text_length
        ids = [tokenizer.bos_token_id, *chunk.ids, tokenizer.eos_token_id]
        ids += [tokenizer.pad_token_id] * (length - len(ids))
        states = self._run(upload(np.array([ids], dtype=np.int64), self._bundle.device))[0]
        if all(weight == 1.0 for weight in chunk.weights):
            return states
        return weighted(states, chunk.weights)

    def _run(self, ids: torch.Tensor) -> torch.Tensor:
        """(1, 77) token ids to (1, 77, D) text states."""
        compiled = self._bundle.compiled
        if compiled is not None:
            states: torch.Tensor = compiled.text_encoder(ids)[0]
            return states
        if self._capturer is not None:
            if not self.graphs.tried:
                capture = partial(CapturedPass, self._as_it_comes, ids, self._capturer)
                self._captured = self.graphs.capture(capture, "the text encoder")
            self.graphs.count_run(self._captured is not None)
        run = self._captured or self._as_it_comes
        return run(ids)[0]

    def _as_it_comes(self, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self._bundle.text_encoder(ids)[0],)


def weighted(states: torch.Tensor, weights: tuple[float, ...]) -> torch.Tensor:
    """``states`` (77, D) with those of tokens 1.. times ``weights``, in the same dtype.

    The mean over all 77 is restored where it is trusted: see the module.
    """
    factors = np.ones((len(states), 1), dtype=np.float32)
    factors[1 : 1 + len(weights), 0] = weights
    plain = states.float()
    product = plain * upload(factors, states.device)
    mean, new_mean = plain.mean(), product.mean()
    floor = _TRUSTED_MEAN * plain.std()
    # Chosen on the device: the host would have to wait for all that it runs.
    trusted = (mean.abs() > floor) & (new_mean.abs() > floor)
    return torch.where(trusted, product * (mean / new_mean), product).to(states.dtype)


def _words_pattern(embeddings: Mapping[str, tuple[int, ...]]) -> re.Pattern[str] | None:
    """Return what finds any of the words, the longest first, where it stands alone.

    Words and text are as `clip_normalized` writes them: a pattern that ignores case by itself
    finds letters that lower-casing does not lead to, such as the long s and the dotless i.
    """
    if not embeddings:
        return None
    words = "|".join(re.escape(word) for word in sorted(embeddings, key=len, reverse=True))
    return re.compile(rf"(?<!\w)({words})(?!\w)")
