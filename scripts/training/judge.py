"""An independent judge of pictures: what thing, what colour, what background, what style.

It shares nothing with the model it judges: a small convolutional network for kinds, another for
backgrounds and styles, and for colours a classifier of pixel statistics (how much of which colour
lies where). All are trained on fresh drawings, roughened as an autoencoder roughens them, and
their accuracy on drawings they never saw is measured with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from scripts.training.data import to_model
from scripts.training.trainer import compute_dtype
from scripts.training.world.looks import draw
from scripts.training.world.scene import BACKGROUNDS, COLOURS, OBJECTS, STYLES, Scene, sample_scene

SIDES = {"shapes": 64, "looks": 96}
"""How large, in pixels, each body of the judge sees a picture."""
READ_BY = {"kind": "shapes", "background": "looks", "style": "looks"}
WIDTH = 112
COLOUR_SIDE = 48
GRID = 6
DRAWN = 320
"""What is judged is served in pixels of this side, so that is what it learns from."""
LABELS: dict[str, tuple[str | None, ...]] = {
    "kind": OBJECTS,
    "colour": tuple(COLOURS),
    "background": BACKGROUNDS,
    "style": (None, *STYLES),
}
_PALETTE = torch.tensor(list(COLOURS.values()), dtype=torch.float32) / 127.5 - 1


def labels_of(scene: Scene) -> dict[str, int]:
    """The class of each attribute of a scene's first thing, its background and its style."""
    thing = scene.things[0]
    words = (thing.kind, thing.colour, scene.background, scene.style)
    return {name: LABELS[name].index(word) for name, word in zip(LABELS, words, strict=True)}


def colour_statistics(pictures: torch.Tensor) -> torch.Tensor:
    """(N, 10 * GRID^2): the share of each palette colour in each cell of a grid.

    A pixel counts for the colours it is near to, softly. ``pictures`` are in -1..1.
    """
    small = F.interpolate(pictures, (COLOUR_SIDE, COLOUR_SIDE), mode="area")
    flat = small.permute(0, 2, 3, 1)[..., None, :]  # (N, H, W, 1, 3)
    distance = (flat - _PALETTE).pow(2).sum(dim=-1)  # (N, H, W, 10)
    share = torch.softmax(-distance * 12, dim=-1).permute(0, 3, 1, 2)
    return F.adaptive_avg_pool2d(share, GRID).flatten(1)


def _body() -> torch.nn.Sequential:
    widths = (3, 24, 48, 80, WIDTH)
    layers: list[torch.nn.Module] = []
    for i, (a, b) in enumerate(pairwise(widths)):
        layers += [
            torch.nn.Conv2d(a, b, 5 if i == 0 else 3, stride=2, padding=2 if i == 0 else 1),
            torch.nn.GroupNorm(8, b),
            torch.nn.SiLU(),
            torch.nn.Conv2d(b, b, 3, padding=1),
            torch.nn.SiLU(),
        ]
    return torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())


def views(pictures: torch.Tensor) -> dict[str, torch.Tensor]:
    """Pictures, (N, 3, H, W) in -1..1, as large as each body sees them."""
    return {n: F.interpolate(pictures, (side, side), mode="area") for n, side in SIDES.items()}


class Judge(torch.nn.Module):
    """About 0.7 M parameters. ``forward`` gives logits of each attribute, (N, classes).

    What a thing is, is read at another size than its looks, by a body of its own: one body for
    both read either the kinds or the styles badly.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bodies = torch.nn.ModuleDict({name: _body() for name in SIDES})
        self.heads = torch.nn.ModuleDict(
            {name: torch.nn.Linear(WIDTH * 4, len(LABELS[name])) for name in READ_BY}
        )
        self.colour = torch.nn.Sequential(
            torch.nn.Linear(len(COLOURS) * GRID**2, 96),
            torch.nn.SiLU(),
            torch.nn.Linear(96, len(COLOURS)),
        )

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.read(views(pictures))

    def read(self, seen: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The logits of pictures whose `views` are given."""
        features = {name: body(seen[name]) for name, body in self.bodies.items()}
        logits = {name: self.heads[name](features[body]) for name, body in READ_BY.items()}
        logits["colour"] = self.colour(colour_statistics(seen["looks"]))
        return logits

    @torch.no_grad()
    def verdicts(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        """The class of each attribute, (N,) each, for pictures in -1..1 of one size."""
        return {name: logits.argmax(dim=1) for name, logits in self.eval()(pictures).items()}


@dataclass(frozen=True, eq=False)
class _Drawings:
    seen: dict[str, torch.Tensor]
    labels: dict[str, torch.Tensor]


def _drawings(count: int, seed: int, styled: float) -> _Drawings:
    rng = np.random.default_rng(seed)
    seen = {name: torch.empty(count, 3, side, side) for name, side in SIDES.items()}
    each = []
    for i in range(count):
        scene = sample_scene(rng, DRAWN, DRAWN, split="any", styled=styled, count=1)
        picture = torch.from_numpy(draw(scene)).permute(2, 0, 1)[None]
        for name, view in views(to_model(picture)).items():
            seen[name][i] = view[0]
        each.append(labels_of(scene))
    labels = {name: torch.tensor([one[name] for one in each]) for name in LABELS}
    return _Drawings(seen, labels)


def _roughened(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blur, noise, a shift of tone and of place: what a generated picture may have."""
    if torch.rand((), generator=generator) < 0.5:
        x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    x = x + 0.06 * torch.randn(x.shape, generator=generator)
    gain = 1 + 0.1 * torch.randn((len(x), 3, 1, 1), generator=generator)
    shift = torch.randint(-4, 5, (2,), generator=generator).tolist()
    return (x * gain).roll(shift, dims=(2, 3))


def train_judge(count: int = 6000, steps: int = 1500, seed: int = 900) -> Judge:
    """Train a judge on ``count`` fresh drawings; some twenty minutes of one core."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    # A plain drawing is one look of 18, and a style counts twice: it is what is read worst.
    data, judge = _drawings(count, seed, 0.8), Judge()
    judge.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(judge.parameters(), lr=3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    mixed = compute_dtype(torch.device("cpu")) is torch.bfloat16
    for _ in range(steps):
        chosen = torch.randint(count, (64,), generator=generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            rough = {n: _roughened(one[chosen], generator) for n, one in data.seen.items()}
            logits = judge.read(rough)
        losses = {n: F.cross_entropy(logits[n].float(), data.labels[n][chosen]) for n in LABELS}
        optimiser.zero_grad()
        loss = torch.stack([*losses.values(), losses["style"]]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return judge.eval()


def own_accuracy(judge: Judge, count: int = 600, seed: int = 901) -> dict[str, float]:
    """The share of fresh drawings that the judge reads right, by attribute; style of those that
    have one."""
    data = _drawings(count, seed, 0.8)
    with torch.no_grad():
        logits = judge.eval().read(data.seen)
    right = {n: (logits[n].argmax(dim=1) == data.labels[n]).float() for n in LABELS}
    right["style"] = right["style"][data.labels["style"] > 0]
    return {name: float(one.mean()) for name, one in right.items()}


def load_judge(path: Path, train_if_missing: bool = True) -> Judge:
    """The judge kept at ``path`` (float16 safetensors), trained first if there is none."""
    from safetensors.torch import load_file, save_file

    if not path.exists():
        if not train_if_missing:
            raise FileNotFoundError(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        weights = {k: v.half().contiguous() for k, v in train_judge().state_dict().items()}
        save_file(weights, path.with_suffix(".new"))
        path.with_suffix(".new").rename(path)
    judge = Judge()
    judge.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return judge.eval()
