"""The record and the random numbers of each row of a batch: a pure function of seed and step."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from m3ae_tpu.data.crops import CROP_DRAWS
from m3ae_tpu.data.plan import Plan
from m3ae_tpu.data.shuffle import shuffled

DRAWS_VERSION = 2
"""Increases when a step's rows change: older runs then cannot resume as if nothing had changed."""


def draw_seed(seed: int, source: int, purpose: str) -> int:
    """Derives the seed of one source's shuffling or augmentation from the run's.

    Hashed, so that neighbouring run seeds and sources share no random numbers.
    """
    digest = hashlib.sha256(f"{seed}/{source}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


class Row(NamedTuple):
    """The record of one row of a batch, and its random numbers, uniform in [0, 1)."""

    source: int
    record: int
    caption_draw: float
    """Picks one of the record's captions."""
    flip_draw: float
    crop_draws: Float64[np.ndarray, "attempts 4"]
    key: tuple[int, int]
    """Seed of the source and number of the row: decides draws that only some runs need."""


class DrawRows:
    """The rows of a step's batch: a pure function of the run's seed and the step."""

    def __init__(self, plan: Plan, splits: Sequence[range], seed: int):
        """Takes the plan, the records of each source, and the run's seed."""
        self._plan, self._splits = plan, splits
        self._order_seeds = [draw_seed(seed, source, "order") for source in range(len(splits))]
        self._augment_seeds = [draw_seed(seed, source, "augment") for source in range(len(splits))]
        self._key_seeds = [draw_seed(seed, source, "key") for source in range(len(splits))]

    def __call__(self, step: int) -> list[Row]:
        """Draws a step's rows. Row n of a source has the n-th block of its random numbers."""
        planned, rows = self._plan.rows(step), dict[int, Iterator[Row]]()
        for source in dict.fromkeys(source for source, _ in planned):
            numbers = [number for other, number in planned if other == source]
            rows[source] = iter(self._rows(source, numbers))
        return [next(rows[source]) for source, _ in planned]

    def _rows(self, source: int, numbers: Sequence[int]) -> list[Row]:
        """Returns rows of one source, whose numbers increase."""
        split, num_draws = self._splits[source], 2 + math.prod(CROP_DRAWS)
        records = shuffled(np.array(numbers), len(split), self._order_seeds[source]).tolist()
        blocks = -(-num_draws // 4)  # Philox makes four numbers at a time.
        gaps = np.flatnonzero(np.diff(numbers) != 1) + 1
        runs = []
        for run in np.split(np.array(numbers), gaps):
            philox = np.random.Philox(self._augment_seeds[source]).advance(int(run[0]) * blocks)
            runs.append(np.random.Generator(philox).random((len(run), 4 * blocks)))
        draws = np.concatenate(runs)
        crops = draws[:, 2:num_draws].reshape(-1, *CROP_DRAWS)
        return [
            Row(source, split[record], caption, flip, crop, (self._key_seeds[source], number))
            for number, record, (caption, flip), crop in zip(
                numbers, records, draws[:, :2].tolist(), crops, strict=True
            )
        ]
