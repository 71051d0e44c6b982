"""The largest picture, and one whose opposite edges meet."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.gpu.rig import Rig

if not torch.cuda.is_available():
    pytestmark = pytest.mark.slow("checkpoints")


def test_the_largest_picture_and_a_small_one_beside_it(rig: Rig) -> None:
    side = 320 if rig.narrow else 1536
    with rig.engine(rig.bundle()) as engine:
        large, small = engine.submit(rig.ask(1, side)), engine.submit(rig.ask(2))
        assert small.wait(120).image.shape == (rig.size, rig.size, 3)
        image = large.wait(120).image
    assert image.shape == (side, side, 3)
    assert image.std() > 5


@pytest.mark.parametrize("captured", [True, False], ids=["captured", "as it comes"])
def test_circular_padding_changes_a_picture_and_only_where_it_is_asked_for(
    rig: Rig, captured: bool
) -> None:
    size = rig.size if captured else rig.size + 64
    with rig.engine(rig.bundle(), exact=True) as engine:
        before = engine.submit(rig.ask(1, size)).wait(120).image
        circular = engine.submit(rig.ask(1, size, tile=True)).wait(120).image
        after = engine.submit(rig.ask(1, size)).wait(120).image
    assert np.array_equal(before, after)
    assert not np.array_equal(before, circular)
