"""Broken records that a run met: their names, their number by source, and the limit on them."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_args

from m3ae_tpu.batch import Source
from m3ae_tpu.data.examples import CUT, Fault
from m3ae_tpu.errors import UserError

FAULTS: tuple[Fault, ...] = get_args(Fault.__value__)
_NUM_NAMED = 4
"""Records of a source and fault that are named. Fewer different ones never stop a run."""
_RESTART_ROWS = 1_000_000
"""Rows of a source after which counting restarts, so that damage late in a long run shows too."""
_LOG = logging.getLogger(__name__)


class BrokenRow(NamedTuple):
    """A row whose own record has a fault."""

    source: int
    index: int
    """The record's index in the source's shards."""
    fault: Fault


class BrokenRecords:
    """Counts the rows with broken records by source, and names the first few in the log.

    Depends on nothing but the rows: a resumed run continues from `state`.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        max_fraction: float,
        place: Callable[[int, int], str],
        state: dict[str, Any] | None = None,
    ):
        """Starts to count.

        Args:
            sources: The run's sources; names and rows count.
            max_fraction: Fraction of a source's records that may be broken.
            place: Returns a record's file and number, given source and index, for messages.
            state: An earlier `state`, to continue from.
        """
        self._sources, self._max_fraction, self._place = sources, max_fraction, place
        self._counts = state["sources"] if state else [_unbroken() for _ in sources]

    @property
    def state(self) -> dict[str, Any]:
        """The counts so far, ready for JSON."""
        return {"sources": self._counts}

    def name(self, rows: Sequence[BrokenRow]) -> None:
        """Logs those rows that are among the first few of their source and fault."""
        for source, index, fault in rows:
            first = self._counts[source]["first"].setdefault(fault, [])
            if index not in first and len(first) < _NUM_NAMED:
                first.append(index)
                effect = (
                    "its caption is cut" if fault == CUT else "the next good record replaces it"
                )
                _LOG.warning(
                    "broken record (%s): %s; %s", fault, self._place(source, index), effect
                )

    def num_named(self) -> list[int]:
        """Returns how many different replaced records were named, for each source."""
        return [
            sum(len(indices) for fault, indices in counts["first"].items() if fault != CUT)
            for counts in self._counts
        ]

    def add(self, steps: int, faults: Sequence[dict[Fault, int]], num_named: Sequence[int]) -> None:
        """Adds the rows of some steps.

        Args:
            steps: Number of steps.
            faults: For each source, rows with broken records in these steps, over all processes.
            num_named: Sum of `num_named()` over all processes.

        Raises:
            UserError: more than `max_fraction` of a source is broken, beyond bad luck.
        """
        for number, (counts, new) in enumerate(zip(self._counts, faults, strict=True)):
            counts["rows"] += steps * self._sources[number].rows
            for fault, count in new.items():
                counts["faults"][fault] = counts["faults"].get(fault, 0) + count
            self._require_few(number, num_named[number])
            if counts["rows"] >= _RESTART_ROWS:
                self._counts[number] = _unbroken()

    def _require_few(self, number: int, num_named: int) -> None:
        rows, faults = self._counts[number]["rows"], self._counts[number]["faults"]
        first = {
            fault: indices
            for fault, indices in self._counts[number]["first"].items()
            if fault != CUT
        }
        broken = sum(count for fault, count in faults.items() if fault != CUT)
        allowed = self._max_fraction * rows
        # Four standard deviations of slack: bad luck must not stop a source just below the limit.
        # A tiny set meets its one broken record every epoch and is not a broken set.
        slack = 4 * math.sqrt(allowed)
        are_few = self._max_fraction > 0 and num_named < _NUM_NAMED
        if broken <= allowed + slack or are_few:
            return
        reasons = ", ".join(
            f"{count} {fault}" for fault, count in sorted(faults.items()) if fault != CUT
        )
        examples = "; ".join(
            self._place(number, index)
            for indices in first.values()
            for index in indices[: 3 - len(first) // 2]
        )
        raise UserError(
            f"source {self._sources[number].name} is broken: {broken:,} of its last {rows:,} rows "
            f"({broken / rows:.1%}): {reasons}. "
            f"data.max_broken_fraction = {self._max_fraction:g}.\n"
            f"For example {examples}.\n"
            "Make or copy these shards again, or raise --data.max_broken_fraction to train "
            "without these records."
        )


def _unbroken() -> dict[str, Any]:
    return {"rows": 0, "faults": {}, "first": {}}
