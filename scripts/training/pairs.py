"""Pairs of scenes for the U-Net: drawn by processes beside the training, kept encoded.

A pair is a scene and what it was before an edit, either of which may be the picture that is asked
for. Processes draw while the training computes; what they drew is encoded once and stays on the
device until newer pairs take its place.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import CLIPTokenizer

from models.device import upload
from scripts.training.data import Size, to_model
from scripts.training.tokenizer import encode
from scripts.training.trainer import compute_dtype
from scripts.training.world.captions import caption
from scripts.training.world.edits import earlier_scene
from scripts.training.world.looks import draw
from scripts.training.world.scene import Scene, sample_scene
from server.cpus import usable_cpus

# How many times as often as others what fails more often is drawn (`scripts/measure_embedded`
# prints what that is), and pairs whose kinds of thing differ, as few edits of four do.
WORD_TIMES = {
    **dict.fromkeys(("anime", "pixel-art", "neon-punk", "low-poly"), 2.0),
    **dict.fromkeys(("fish", "moon", "circle"), 3.0),
    "star": 2.0,
    **dict.fromkeys(("pink", "white", "blue", "sky"), 1.6),
}
KIND_TIMES = 3.0
MOST_TIMES = 10.0
CAPTIONS = 4
"""Wordings of each picture that are kept."""
CHUNK = 16
"""Pairs that a process draws before it hands them over; CAPACITY is a multiple."""
REUSE = 10
"""Samples that are trained for each pair drawn."""
FILL, CAPACITY = 32, 4096
"""Pairs that are there before the first step, and the most of one size that are kept."""


@dataclass(frozen=True)
class Phase:
    """Sizes in pixels with the share of each, and the samples of a step on a CPU and on a card."""

    name: str
    sizes: tuple[tuple[Size, float], ...]
    batch: int
    card_batch: int


class Drawn(NamedTuple):
    """Pairs of one size: pictures (N, 2, H, W, 3) uint8, ids of their captions
    (N, 2, CAPTIONS, 77) int32, and which of them have a style, (N, 2) bool."""

    pictures: np.ndarray
    ids: np.ndarray
    styled: np.ndarray


class Batch(NamedTuple):
    """Samples on the device: scaled latents (B, 4, h, w) of the picture asked for and of the one
    before, ids of a caption (B, 77), and whether it has a style, (B,) bool."""

    latents: torch.Tensor
    earlier: torch.Tensor
    ids: torch.Tensor
    styled: torch.Tensor


def times(pair: tuple[Scene, Scene]) -> float:
    """Return how many times as often as a plain pair this one is drawn, at most MOST_TIMES."""
    each = []
    for scene in pair:
        words = [scene.background, scene.style]
        words += [word for thing in scene.things for word in (thing.colour, thing.kind)]
        each.append(np.prod([WORD_TIMES.get(word, 1.0) for word in words if word]))
    kinds = [[thing.kind for thing in scene.things] for scene in pair]
    often = float(np.mean(each)) * (KIND_TIMES if kinds[0] != kinds[1] else 1.0)
    return min(often, MOST_TIMES)


def sample_pair(size: Size, rng: np.random.Generator) -> tuple[Scene, Scene]:
    """Return a scene and what it was before an edit, drawn as often as `times` says."""
    while True:
        scene = sample_scene(rng, *size, styled=0.5)
        pair = (scene, earlier_scene(scene, rng))
        if rng.random() * MOST_TIMES < times(pair):
            return pair


def draw_pairs(size: Size, count: int, tokenizer: CLIPTokenizer, rng: np.random.Generator) -> Drawn:
    """Return ``count`` drawn pairs of ``size``."""
    pairs = [sample_pair(size, rng) for _ in range(count)]
    pictures = np.stack([[draw(scene) for scene in pair] for pair in pairs])
    texts = [caption(scene, rng) for pair in pairs for scene in pair for _ in range(CAPTIONS)]
    ids = np.array(encode(tokenizer, texts), np.int32).reshape(count, 2, CAPTIONS, -1)
    return Drawn(pictures, ids, np.array([[s.style is not None for s in p] for p in pairs]))


class _Stream(IterableDataset[Drawn]):
    """Chunks of drawn pairs without an end, others in each process and for each seed."""

    def __init__(self, phase: Phase, tokenizer: CLIPTokenizer, seed: int) -> None:
        self._phase, self._tokenizer, self._seed = phase, tokenizer, seed

    def __iter__(self) -> Iterator[Drawn]:
        worker = get_worker_info()
        rng = np.random.default_rng([23, self._seed, worker.id if worker else 0])
        sizes, shares = zip(*self._phase.sizes, strict=True)
        while True:
            size = sizes[int(rng.choice(len(sizes), p=shares))]
            yield draw_pairs(size, CHUNK, self._tokenizer, rng)


def _start_worker(_: int) -> None:
    for asking in (signal.SIGINT, signal.SIGTERM):
        signal.signal(asking, signal.SIG_IGN)  # of a whole group, for the training to take
    os.nice(5)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when the one that started it has. Waiting for its thread that writes would
    be for ever: nobody reads what is left in the pipe, and as this process could, it never breaks.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _as_it_is(drawn: Any) -> Any:
    return drawn


class _Pool:
    """The newest pairs of one size, on the device."""

    def __init__(self) -> None:
        self._kept: list[torch.Tensor] = []
        self._next = 0

    def add(self, *new: torch.Tensor) -> None:
        """Take in latents (N, 2, 4, h, w), ids and styled; beyond CAPACITY the oldest go."""
        if not self._kept:
            self._kept = list(new)
        elif len(self._kept[0]) < CAPACITY:
            self._kept = [torch.cat(both) for both in zip(self._kept, new, strict=True)]
        else:
            for old, one in zip(self._kept, new, strict=True):
                old[self._next : self._next + CHUNK] = one
            self._next = (self._next + CHUNK) % CAPACITY

    def take(self, count: int, generator: torch.Generator) -> Batch:
        """Return ``count`` samples, of each pair either picture and any of its captions."""
        latents, ids, styled = self._kept

        def draw_index(below: int) -> torch.Tensor:
            return torch.randint(below, (count,), device=latents.device, generator=generator)

        pair, side, wording = draw_index(len(latents)), draw_index(2), draw_index(CAPTIONS)
        new, old = latents[pair, side].float(), latents[pair, 1 - side].float()
        return Batch(new, old, ids[pair, side, wording].long(), styled[pair, side])


class Feed:
    """Batches for a phase from pairs that other processes draw, at most one a usable CPU and 16."""

    def __init__(
        self,
        phase: Phase,
        vae: AutoencoderKL,
        tokenizer: CLIPTokenizer,
        device: torch.device,
        seed: int,
    ) -> None:
        # bfloat16's error is a hundredth of a latent's spread.
        self._dtype = compute_dtype(device)
        self._encoder = deepcopy(vae).to(self._dtype, memory_format=torch.channels_last)
        self._device, self._phase = device, phase
        self._batch = phase.card_batch if device.type == "cuda" else phase.batch
        loader = DataLoader(
            _Stream(phase, tokenizer, seed),
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=max(1, min(usable_cpus().count - 1, 16)),
            worker_init_fn=_start_worker,
            multiprocessing_context="spawn",
        )
        self._drawn = iter(loader)
        self._pools: dict[Size, _Pool] = {}
        self._rng = np.random.default_rng([29, seed])
        self._pairs, self._trained = 0, 0

    def take(self, generator: torch.Generator) -> Batch:
        """Return the samples of a step; ``generator`` is of the device."""
        while self._pairs < FILL + self._trained / REUSE:
            self._take_in(next(self._drawn))
        known = [(size, share) for size, share in self._phase.sizes if size in self._pools]
        shares = np.array([share for _, share in known])
        size, _ = known[int(self._rng.choice(len(known), p=shares / shares.sum()))]
        self._trained += self._batch
        return self._pools[size].take(self._batch, generator)

    def close(self) -> None:
        """End the processes that draw, which a process that has not cannot end without."""
        # To drop the iterator is not enough: an error's traceback may hold it.
        self._drawn._shutdown_workers()  # type: ignore[attr-defined]

    @torch.no_grad()
    def _take_in(self, drawn: Drawn) -> None:
        pictures = upload(drawn.pictures, self._device)
        flat = to_model(pictures.flatten(0, 1).permute(0, 3, 1, 2)).to(self._dtype)
        flat = flat.contiguous(memory_format=torch.channels_last)
        latents = self._encoder.encode(flat).latent_dist.mean * self._encoder.config.scaling_factor
        height, width = drawn.pictures.shape[2:4]
        self._pools.setdefault((width, height), _Pool()).add(
            latents.half().unflatten(0, (-1, 2)),
            upload(drawn.ids, self._device),
            upload(drawn.styled, self._device),
        )
        self._pairs += len(drawn.ids)
