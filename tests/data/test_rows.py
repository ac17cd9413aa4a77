"""Guards the rows of a step: records and random numbers never change for a seed."""

import numpy as np

from m3ae_tpu.batch import Source
from m3ae_tpu.config import SourceConfig
from m3ae_tpu.data.plan import Plan
from m3ae_tpu.data.rows import DrawRows, draw_seed


def test_what_a_step_holds_stays_what_it_was_in_earlier_versions():
    # If it must change, increase DRAWS_VERSION.
    sources = [
        Source("paired", 3, SourceConfig()),
        Source("image", 2, SourceConfig(kind="image")),
    ]
    rows = DrawRows(Plan(sources), [range(1000), range(10, 60)], seed=7)(400)
    assert [(row.source, row.record) for row in rows] == [
        (0, 914),
        (0, 42),
        (0, 639),
        (1, 16),
        (1, 54),
    ]
    np.testing.assert_allclose(
        [row.flip_draw for row in rows], [0.9789, 0.5193, 0.3237, 0.7741, 0.7251], atol=1e-4
    )
    crops = [row.crop_draws[0, 0] for row in rows]
    np.testing.assert_allclose(crops, [0.4524, 0.3909, 0.1492, 0.8161, 0.3192], atol=1e-4)


def test_seeds_differ_by_run_source_and_purpose_and_fit_into_64_bits():
    seeds = {
        draw_seed(seed, source, purpose)
        for seed in (0, 1, 2**32 - 1)
        for source in range(3)
        for purpose in ("order", "augment")
    }
    assert len(seeds) == 18
    assert all(0 <= seed < 2**64 for seed in seeds)
