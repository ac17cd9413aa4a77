"""The rows of each batch by source, and their division among processes.

Each global batch holds a fixed number of rows of every source. A process takes consecutive rows of
each kind; those of all processes, one after the other, are the batch of a single process.
"""

from collections.abc import Sequence

from m3ae_tpu.batch import Source
from m3ae_tpu.errors import require


class Plan:
    """The rows of one process: for each step, (source, row number within that source) of each row.

    A source's rows are numbered through all steps, from 0.
    """

    def __init__(
        self, sources: Sequence[Source], *, process_index: int = 0, process_count: int = 1
    ):
        """Lays out one batch.

        Args:
            sources: The run's sources; kinds and rows count.
            process_index: This process among those that train together.
            process_count: Number of these processes; each gets as many rows of each kind.

        Raises:
            UserError: the rows of a kind do not divide over the processes.
        """
        self._rows = [source.rows for source in sources]
        self._layout: list[tuple[int, int]] = []
        kinds = [source.kind for source in sources]
        for kind in dict.fromkeys(kinds):
            of_kind = [number for number, other in enumerate(kinds) if other == kind]
            order = _interleave({number: sources[number].rows for number in of_kind})
            require(
                len(order) % process_count == 0,
                f"{len(order)} rows of kind {kind!r} in a batch do not divide over {process_count} "
                "processes. Change batch_size or the sources' weights to make them a multiple.",
            )
            size = len(order) // process_count
            self._layout += order[process_index * size : (process_index + 1) * size]

    def rows(self, step: int) -> list[tuple[int, int]]:
        """Returns (source, row number) of each row at a step, kind by kind.

        Row numbers of a source are consecutive.
        """
        return [(source, step * self._rows[source] + number) for source, number in self._layout]


def _interleave(rows: dict[int, int]) -> list[tuple[int, int]]:
    """Spreads the sources evenly, so that every process prepares about the same work."""
    spread = [
        ((number + 0.5) / count, source, number)
        for source, count in rows.items()
        for number in range(count)
    ]
    return [(source, number) for _, source, number in sorted(spread)]
