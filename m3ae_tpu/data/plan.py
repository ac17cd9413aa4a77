"""The rows of each batch by source, and their division into parts.

Each global batch holds a fixed number of rows of every source. A part has consecutive rows of each
kind; all parts, one after the other, are the batch of a single process.
"""

from collections.abc import Sequence

from m3ae_tpu.batch import Source
from m3ae_tpu.errors import require


class Plan:
    """The rows of parts of a batch: for each step, (source, row number within it) of each row.

    A source's rows are numbered through all steps, from 0.
    """

    def __init__(
        self, sources: Sequence[Source], *, parts: Sequence[int] = (0,), num_parts: int = 1
    ):
        """Lays out one batch.

        Args:
            sources: The run's sources; kinds and rows count.
            parts: Those that this process makes, in order.
            num_parts: Number of parts; each has as many rows of each kind.

        Raises:
            UserError: the rows of a kind do not divide into the parts.
        """
        self._rows = [source.rows for source in sources]
        self._layout: list[tuple[int, int]] = []
        kinds = [source.kind for source in sources]
        for kind in dict.fromkeys(kinds):
            of_kind = [number for number, other in enumerate(kinds) if other == kind]
            order = _interleave({number: sources[number].rows for number in of_kind})
            require(
                len(order) % num_parts == 0,
                f"{len(order)} rows of kind {kind!r} in a batch do not divide into {num_parts} "
                "parts. Change batch_size or the sources' weights to make them a multiple.",
            )
            size = len(order) // num_parts
            for part in parts:
                self._layout += order[part * size : (part + 1) * size]

    def rows(self, step: int) -> list[tuple[int, int]]:
        """Returns (source, row number) of each row at a step, kind by kind.

        Row numbers of a source increase, and are consecutive within a part.
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
