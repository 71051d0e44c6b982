"""Batch-invariant mode: the same bytes alone, in a crowd, after a restart."""

from __future__ import annotations

import numpy as np

from pipelines.request import Sampler
from tests.gpu.rig import Rig, images


def test_bytes_are_the_same_alone_in_a_crowd_and_after_a_restart(rig: Rig) -> None:
    request = rig.ask(9, sampler=Sampler.K_EULER_ANCESTRAL, cfg_scale=6.0)
    strangers = [
        rig.ask(20 + i, sampler=sampler, cfg_scale=(7.0, 1.0, 0.0, 4.0)[i % 4])
        for i, sampler in enumerate(
            (Sampler.DDIM, Sampler.K_HEUN, Sampler.K_LMS, Sampler.K_DPM_2, Sampler.DDPM)
        )
    ]
    with rig.engine(rig.bundle(), exact=True) as engine:
        alone = engine.submit(request).wait(120).image
        handles = [engine.submit(stranger) for stranger in strangers[:3]]
        mine = engine.submit(request)
        if not rig.narrow:
            handles += [engine.submit(stranger) for stranger in strangers[3:]]
        images(handles)
        assert np.array_equal(mine.wait(120).image, alone)
    with rig.engine(rig.bundle(), exact=True) as engine:
        assert np.array_equal(engine.submit(request).wait(120).image, alone)
