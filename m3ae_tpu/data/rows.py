"""What stands in each row of a batch, and all that is random about it: a pure function of seed and
step.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from m3ae_tpu.data.images import CROP_DRAWS
from m3ae_tpu.data.mixture import Plan, draw_seed
from m3ae_tpu.data.shuffle import shuffled

DRAWS_VERSION = 2
"""Goes up when a step's rows change: a run of before cannot go on as if nothing had happened."""


class Row(NamedTuple):
    """What stands in one row of a batch, and all that is random about it; nothing is read yet."""

    source: int
    record: int
    wording: float
    flip: float
    crop: Float64[np.ndarray, "attempts 4"]
    """All three uniform in [0, 1)."""


class DrawRows:
    """The rows of a step's batch, a pure function of the run's seed and the step."""

    def __init__(self, plan: Plan, parts: Sequence[range], seed: int):
        """Takes the records of each source, and the seed of the run."""
        self._plan, self._parts = plan, parts
        self._order_seeds = [draw_seed(seed, source, "order") for source in range(len(parts))]
        self._augment_seeds = [draw_seed(seed, source, "augment") for source in range(len(parts))]

    def __call__(self, step: int) -> list[Row]:
        """Draws what is random in the rows: a source's row p has the p-th stretch of the source's
        random numbers.
        """
        places, rows = self._plan.rows(step), dict[int, Iterator[Row]]()
        for source in dict.fromkeys(source for source, _ in places):
            positions = [position for other, position in places if other == source]
            rows[source] = iter(self._rows(source, positions))
        return [next(rows[source]) for source, _ in places]

    def _rows(self, source: int, positions: Sequence[int]) -> list[Row]:
        """Returns the rows of one source, of positions that follow each other."""
        part, num_draws = self._parts[source], 2 + math.prod(CROP_DRAWS)
        records = shuffled(np.array(positions), len(part), self._order_seeds[source]).tolist()
        blocks = -(-num_draws // 4)  # Philox makes four numbers at a time.
        numbers = np.random.Philox(self._augment_seeds[source]).advance(positions[0] * blocks)
        draws = np.random.Generator(numbers).random((len(positions), 4 * blocks))
        crops = draws[:, 2:num_draws].reshape(-1, *CROP_DRAWS)
        return [
            Row(source, part[record], wording, flip, crop)
            for record, (wording, flip), crop in zip(
                records, draws[:, :2].tolist(), crops, strict=True
            )
        ]
