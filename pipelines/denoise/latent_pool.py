"""Pools of the state of running requests, one for each size, and how long each is kept."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection

import torch

from models.bundle import ModelBundle
from pipelines.denoise.captured_step import PATIENCE, CapturedSteps
from pipelines.denoise.mask import KeptAreas
from pipelines.samplers.programs import SLOTS
from pipelines.scheduler.batching import GroupKey

LONGEST_CAPTURED = 8 * 77
"""Tokens of text above which no step is captured: a graph keeps the keys and values of all blocks,
50 KB a token and row in half precision, and few others would ever use it."""


class LatentPool:
    """The state of the running requests of one group, on the device.

    ``state`` is (capacity + 1, 4 slots, 4, h, w) float32. The last place is ``scratch``, where the
    padding of a captured step reads and writes. ``patience`` says when its steps are captured, see
    `CapturedSteps`. ``kept`` is made for the first request with a mask.

    Text states are (2, T, D) a place in the model's dtype, the unconditional ones first. Graphs
    read them where they always are, so there all places have room. Where none is captured there are
    those of the requests alone: of the longest texts they are 25 MB each.
    """

    def __init__(
        self, bundle: ModelBundle, key: GroupKey, capacity: int, patience: int | None = None
    ) -> None:
        self.key = key
        self.scratch = capacity
        self.captured = CapturedSteps(patience)
        latent = (bundle.latent_channels, key.height, key.width)
        self.state = torch.zeros(capacity + 1, SLOTS, *latent, device=bundle.device)
        self._dtype = bundle.dtype

        def empty(*places: int) -> torch.Tensor:
            shape = (*places, 2, key.text_tokens, bundle.text_width)
            return torch.zeros(shape, device=bundle.device, dtype=bundle.dtype)

        self._texts: torch.Tensor | defaultdict[int, torch.Tensor] = (
            defaultdict(empty) if patience is None else empty(capacity + 1)
        )
        self._free = list(range(capacity - 1, -1, -1))
        self.kept: KeptAreas | None = None
        self._gathered: tuple[tuple[int, ...], torch.Tensor] | None = None

    @property
    def full(self) -> bool:
        return not self._free

    def admit(self, latents: torch.Tensor, text: torch.Tensor) -> int:
        """Take a place; the other slots are zeroed. Raises IndexError when the pool is full."""
        position = self._free.pop()
        self.state[position].zero_()
        self.state[position, 0] = latents
        self._texts[position] = text.to(self._dtype)
        self._gathered = None
        return position

    def keep(self, position: int, mask: torch.Tensor, latents: torch.Tensor) -> None:
        """Set what a request keeps: ``latents`` (4, h, w) where ``mask`` (1, h, w) is below 1."""
        if self.kept is None:
            places, _, *latent = self.state.shape
            self.kept = KeptAreas(places, latent, self.state.device)
        self.kept.write(position, mask, latents)

    def release(self, position: int) -> None:
        self._free.append(position)
        if isinstance(self._texts, defaultdict):
            del self._texts[position]
        self._gathered = None

    def text(self, position: int) -> torch.Tensor:
        """Text states of a place, (2, T, D); zeros of one that nobody has taken."""
        return self._texts[position]

    def text_rows(self, places: tuple[int, ...] | None, index: torch.Tensor) -> torch.Tensor:
        """Text states of U-Net rows, (R, T, D); ``places`` are ``index``, into (places * 2).

        They are kept for the next step, which has the same rows unless a request came or left.
        Without ``places``, in a graph, they are gathered anew.
        """
        if places is not None and self._gathered is not None and self._gathered[0] == places:
            return self._gathered[1]
        if isinstance(self._texts, torch.Tensor):
            made = self._texts.flatten(0, 1).index_select(0, index)
        else:
            assert places is not None
            made = torch.stack([self._texts[place // 2][place % 2] for place in places])
        if places is not None:
            self._gathered = places, made
        return made

    def latents(self, position: int) -> torch.Tensor:
        """Slot 0 of a place, (4, h, w) float32, a copy."""
        return self.state[position, 0].clone()


class LatentPools:
    """The pools there are, by group. A pool lives as long as its requests, or its graphs.

    Pools of the keys in ``hot`` are captured at once and, once used, always kept. Others are
    captured once they have been used for a while, and the ``keep`` used last outlive their
    requests. With ``captures`` false nothing is captured and nothing outlives its requests.
    """

    def __init__(
        self,
        make: Callable[[GroupKey, int | None], LatentPool],
        *,
        captures: bool = False,
        hot: Collection[GroupKey] = (),
        keep: int = 8,
    ) -> None:
        self._make, self._captures, self._keep = make, captures, keep
        self._hot = frozenset(hot)
        self._pools: dict[GroupKey, LatentPool] = {}
        self._users: dict[GroupKey, int] = {}
        self._idle: OrderedDict[GroupKey, None] = OrderedDict()  # captured, the latest last

    def __len__(self) -> int:
        return len(self._pools)

    def __contains__(self, key: GroupKey) -> bool:
        return key in self._pools

    def __getitem__(self, key: GroupKey) -> LatentPool:
        return self._pools[key]

    def enter(self, key: GroupKey) -> LatentPool:
        """The pool of ``key`` for one more request, made if there is none."""
        if key not in self._pools:
            self._pools[key] = self._make(key, self._patience(key))
        self._users[key] = self._users.get(key, 0) + 1
        self._idle.pop(key, None)
        return self._pools[key]

    def leave(self, key: GroupKey) -> None:
        """A request that entered has gone. 400 sizes are possible: an empty pool rarely stays."""
        self._users[key] -= 1
        if self._users[key]:
            return
        if self._captures and key in self._hot:
            return
        if not self._pools[key].captured.any:
            self._drop(key)
        else:
            self._idle[key] = None
            if len(self._idle) > self._keep:
                self._drop(self._idle.popitem(last=False)[0])

    def forget_idle(self) -> None:
        """Drop the pools that no request is in: their graphs, and what could not be captured."""
        for key in [key for key, users in self._users.items() if not users]:
            self._idle.pop(key, None)
            self._drop(key)

    def _drop(self, key: GroupKey) -> None:
        del self._pools[key], self._users[key]

    def _patience(self, key: GroupKey) -> int | None:
        if not self._captures or key.text_tokens > LONGEST_CAPTURED:
            return None
        return 0 if key in self._hot else PATIENCE
