"""Which record stands in which row of which batch: a pure function of config, seed and step.

Each source is walked in an order of its own, shuffled anew every epoch, so that every record comes
once an epoch. Each global batch holds a fixed number of rows of every source. A process takes a
contiguous part of each kind's rows, so the parts of all processes, one after the other, are the
batch of a single process.
"""

import dataclasses
import hashlib
import math
from collections.abc import Sequence

from m3ae_tpu.config import Kind, PretrainConfig, SourceConfig
from m3ae_tpu.errors import require


def rows_per_source(config: PretrainConfig) -> tuple[int, ...]:
    """Apportions `batch_size` to the sources by their weights, with the largest remainders.

    Raises:
        UserError: a source would get no row.
    """
    sources = config.data.sources
    total = sum(source.weight for source in sources)
    shares = [config.batch_size * source.weight / total for source in sources]
    rows = [math.floor(share) for share in shares]
    # Ties go to the source that is named first: sorting is stable.
    by_remainder = sorted(range(len(rows)), key=lambda index: rows[index] - shares[index])
    for index in by_remainder[: config.batch_size - sum(rows)]:
        rows[index] += 1
    for source, n in zip(sources, rows, strict=True):
        require(
            n > 0,
            f"weight = {source.weight} of source {source.shards} gives it no row in a batch of "
            f"{config.batch_size}. Set a weight of {total / config.batch_size:g} or more, or a larger batch_size.",
        )
    return tuple(rows)


def records_in_part(source: SourceConfig, count: int) -> range:
    """Returns the indices that a source uses of its shards' `count` records; parts that meet share
    none.

    Raises:
        UserError: there are none.
    """
    first, end = (math.floor(count * share) for share in source.part)
    require(
        first < end,
        f"part = {source.part} of source {source.shards} holds none of its {count} records. Set a wider part.",
    )
    return range(first, end)


def source_names(config: PretrainConfig) -> tuple[str, ...]:
    """Returns a name for each source: its kind, and its number among the sources if others are of
    this kind.
    """
    kinds = [source.kind for source in config.data.sources]
    return tuple(
        f"{kind}_{index}" if kinds.count(kind) > 1 else kind for index, kind in enumerate(kinds)
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """How much of a source a run has seen."""

    name: str
    rows: int
    distinct_records: int
    epochs: float
    """Rows in units of the source's records."""


def seen_after(config: PretrainConfig, records: Sequence[int], step: int) -> tuple[Seen, ...]:
    """Returns what a run has seen of each source after `step` steps, all processes together.

    Args:
        config: The run's.
        records: Number of records of each source.
        step: Finished steps.
    """
    return tuple(
        Seen(
            name=name,
            rows=step * rows,
            distinct_records=min(step * rows, n),
            epochs=step * rows / n,
        )
        for name, rows, n in zip(
            source_names(config), rows_per_source(config), records, strict=True
        )
    )


def draw_seed(seed: int, source: int, purpose: str) -> int:
    """Derives the seed of one source's shuffling or augmentation from the run's.

    Hashed, so that neither neighbouring seeds of runs nor sources share what they draw.
    """
    digest = hashlib.sha256(f"{seed}/{source}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


class Plan:
    """Where the rows of one process come from: of each step's batch, (source, position in the
    source).
    """

    def __init__(
        self,
        kinds: Sequence[Kind],
        rows: Sequence[int],
        *,
        process_index: int = 0,
        process_count: int = 1,
    ):
        """Lays out one batch.

        Args:
            kinds: Kind of each source.
            rows: Rows of each source in a global batch.
            process_index: Which part of each kind's rows this process takes.
            process_count: Number of parts.

        Raises:
            UserError: the rows of a kind do not divide over the processes.
        """
        self._rows = tuple(rows)
        self._local: list[tuple[int, int]] = []
        for kind in dict.fromkeys(kinds):
            sources = [index for index, other in enumerate(kinds) if other == kind]
            order = _interleave({index: rows[index] for index in sources})
            require(
                len(order) % process_count == 0,
                f"{len(order)} rows of kind {kind!r} in a batch do not divide over {process_count} "
                "processes. Change batch_size or the sources' weights so that they become a multiple of it.",
            )
            part = len(order) // process_count
            self._local += order[process_index * part : (process_index + 1) * part]

    def rows(self, step: int) -> list[tuple[int, int]]:
        """Returns source and position of each row at a step, kind by kind; those of a source follow
        each other.
        """
        return [(source, step * self._rows[source] + position) for source, position in self._local]


def _interleave(rows: dict[int, int]) -> list[tuple[int, int]]:
    """Spreads the sources evenly, so that each part of a batch costs about the same to prepare."""
    places = [
        ((position + 0.5) / n, source, position)
        for source, n in rows.items()
        for position in range(n)
    ]
    return [(source, position) for _, source, position in sorted(places)]
