"""Metrics of a run's data: rows and epochs, and broken records."""

import collections
import copy
from typing import Any

from m3ae_tpu.data.broken import FAULTS, BrokenRecords
from m3ae_tpu.data.examples import Fault
from m3ae_tpu.data.loader import BatchInfo
from m3ae_tpu.data.sources import OpenData
from m3ae_tpu.parallel import processes


class DataLog:
    """Adds up the `BatchInfo` of all steps. A resumed run continues from `state`."""

    def __init__(self, data: OpenData, *, state: dict[str, Any] | None = None):
        """Starts before a run's first step, or where an earlier `state` was taken."""
        self._data = data
        self._broken = BrokenRecords(
            data.sources,
            max_fraction=data.config.max_broken_fraction,
            place=lambda source, index: data.shards[source].place(index),
            state=state and state["broken"],
        )
        self._window = collections.Counter(state["window"] if state else {})
        self._clear()

    def _clear(self) -> None:
        self._steps, self._counts = 0, collections.Counter[str]()
        self._faults = [collections.Counter[Fault]() for _ in self._data.sources]

    def add(self, info: BatchInfo) -> None:
        """Adds the rows of the next step."""
        self._steps += 1
        self._counts.update(info.counts)
        for row in info.broken:
            self._faults[row.source][row.fault] += 1
        self._broken.name(info.broken)

    def reduce(self) -> None:
        """Sums the steps since the last call over all processes, which must all call it then.

        Raises:
            UserError: too many records of a source are broken.
        """
        if not self._steps:
            return
        names = sorted(self._counts)
        local = [
            *(self._counts[name] for name in names),
            *(counter[fault] for counter in self._faults for fault in FAULTS),
            *self._broken.num_named(),
        ]
        sums = iter(processes.total(local))
        self._window.update({name: next(sums) for name in names})
        faults: list[dict[Fault, int]] = [
            {fault: n for fault in FAULTS if (n := next(sums))} for _ in self._faults
        ]
        for counts in faults:
            self._window.update({f"data/broken/{fault}": n for fault, n in counts.items()})
        self._broken.add(self._steps, faults, list(sums))
        self._clear()

    def line(self, step: int) -> dict[str, int | float]:
        """Returns the metrics of the steps since the last call, up to `step`, after `reduce`."""
        line: dict[str, int | float] = dict(sorted(self._window.items()))
        self._window.clear()
        for source, num_records in zip(self._data.sources, self._data.num_records, strict=True):
            rows = step * source.rows
            line |= {
                f"data/rows/{source.name}": rows,
                f"data/epochs/{source.name}": rows / num_records,
            }
        return line

    @property
    def state(self) -> dict[str, Any]:
        """All that a resumed run needs to continue, ready for JSON; read it after `reduce`."""
        return copy.deepcopy({"window": dict(self._window), "broken": self._broken.state})
