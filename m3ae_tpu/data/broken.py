"""Broken records that a run met: which, how many of each source, and whether they are too many."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_args

from m3ae_tpu.data.examples import CUT, Fault
from m3ae_tpu.errors import UserError

FAULTS: tuple[Fault, ...] = get_args(Fault.__value__)
_NAMED = 4
"""Records of a source and fault that are named. Fewer different ones than these never stop a run.
"""
_STRETCH = 1_000_000
"""Rows of a source after which counting starts anew: damage late in a long run must show too."""
_LOG = logging.getLogger(__name__)


class BrokenRow(NamedTuple):
    """A row whose own record has a fault."""

    source: int
    index: int
    """The record, among the source's."""
    fault: Fault


class BrokenRecords:
    """Counts the rows with broken records, source by source, and names the first few in the log.

    What it says hangs on nothing but the rows: a run that goes on takes `state` up again.
    """

    def __init__(
        self,
        names: Sequence[str],
        rows: Sequence[int],
        *,
        max_fraction: float,
        place: Callable[[int, int], str],
        state: dict[str, Any] | None = None,
    ):
        """Starts to count.

        Args:
            names: Of the sources.
            rows: Of each source in a global batch.
            max_fraction: Share of broken records of a source that a run lives with.
            place: Where a record of a source lies, for messages.
            state: As `state` was, to go on from there.
        """
        self._names, self._rows, self._max_fraction, self._place = names, rows, max_fraction, place
        self._sources = state["sources"] if state else [_unbroken() for _ in names]

    @property
    def state(self) -> dict[str, Any]:
        """What was counted, ready for JSON."""
        return {"sources": self._sources}

    def name(self, rows: Sequence[BrokenRow]) -> None:
        """Logs those rows that are among the first few of their source and fault."""
        for source, index, fault in rows:
            first = self._sources[source]["first"].setdefault(fault, [])
            if index not in first and len(first) < _NAMED:
                first.append(index)
                fate = (
                    "its caption is cut" if fault == CUT else "the next good record takes its place"
                )
                _LOG.warning("broken record (%s): %s; %s", fault, self._place(source, index), fate)

    def num_named(self) -> list[int]:
        """Returns of each source how many different records without use were named."""
        return [
            sum(len(found) for fault, found in source["first"].items() if fault != CUT)
            for source in self._sources
        ]

    def add(self, steps: int, counts: Sequence[dict[Fault, int]], num_named: Sequence[int]) -> None:
        """Adds the rows of some steps.

        Args:
            steps: How many.
            counts: Of each source, the rows with broken records in these steps, over all processes.
            num_named: As `num_named` returns it, the sum over all processes.

        Raises:
            UserError: more than `max_fraction` of a source is broken, and it is not chance.
        """
        for number, (source, new) in enumerate(zip(self._sources, counts, strict=True)):
            source["rows"] += steps * self._rows[number]
            for fault, count in new.items():
                source["faults"][fault] = source["faults"].get(fault, 0) + count
            self._require_few(number, num_named[number])
            if source["rows"] >= _STRETCH:
                self._sources[number] = _unbroken()

    def _require_few(self, number: int, num_named: int) -> None:
        rows, faults = self._sources[number]["rows"], self._sources[number]["faults"]
        first = {
            fault: found for fault, found in self._sources[number]["first"].items() if fault != CUT
        }
        broken = sum(count for fault, count in faults.items() if fault != CUT)
        allowed = self._max_fraction * rows
        # Four standard deviations on top: a source that is just good enough must not stop by bad
        # luck, and one broken record in a tiny set, met every epoch, is no broken set.
        slack = 4 * math.sqrt(allowed)
        is_one_alone = self._max_fraction > 0 and num_named < _NAMED
        if broken <= allowed + slack or is_one_alone:
            return
        reasons = ", ".join(
            f"{count} {fault}" for fault, count in sorted(faults.items()) if fault != CUT
        )
        examples = "; ".join(
            self._place(number, index)
            for found in first.values()
            for index in found[: 3 - len(first) // 2]
        )
        raise UserError(
            f"source {self._names[number]} is broken: {broken:,} of its last {rows:,} rows ({broken / rows:.1%}): "
            f"{reasons}. data.max_broken_fraction = {self._max_fraction:g}.\n"
            f"For example {examples}.\n"
            "Make or copy these shards again, or raise --data.max_broken_fraction to train without these records."
        )


def _unbroken() -> dict[str, Any]:
    return {"rows": 0, "faults": {}, "first": {}}
