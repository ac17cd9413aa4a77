"""What a run tells of its data: counts and epochs for the metrics, broken records, and the ids of
all rows.
"""

import collections
import copy
import json
import os
import pathlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.data.broken import FAULTS, BrokenRecords
from m3ae_tpu.data.examples import Fault
from m3ae_tpu.data.loader import Loader, Origin
from m3ae_tpu.data.mixture import rows_per_source, seen_after, source_names
from m3ae_tpu.errors import require


class DataLog:
    """Adds up what the steps say of their data. A run that goes on takes `state` up again."""

    def __init__(
        self,
        config: PretrainConfig,
        loader: Loader,
        *,
        records: list[int],
        step: int = 0,
        state: dict[str, Any] | None = None,
    ):
        """Starts after `step` finished steps.

        Args:
            config: The run's.
            loader: Knows where records lie.
            records: Number of records of each source.
            step: Finished steps.
            state: As `state` returned it at that step.
        """
        self._config, self._records = config, records
        self._broken = BrokenRecords(
            source_names(config),
            rows_per_source(config),
            max_fraction=config.data.max_broken_fraction,
            place=loader.place,
            state=state and state["broken"],
        )
        self._window = collections.Counter(state["window"] if state else {})
        self._steps, self._counts = 0, collections.Counter[str]()
        self._faults: list[collections.Counter[Fault]] = [collections.Counter() for _ in records]

    def add(self, origin: Origin) -> None:
        """Adds the rows of the next step."""
        self._steps += 1
        self._counts.update(origin.counts)
        for row in origin.broken:
            self._faults[row.source][row.fault] += 1
        self._broken.name(origin.broken)

    def reduce(self) -> None:
        """Adds up what came since the last call, over all processes; all must call it after the
        same steps.

        Raises:
            UserError: too many records of a source are broken.
        """
        if not self._steps:
            return
        names = sorted(self._counts)
        parts = [
            [self._counts[name] for name in names],
            [counter[fault] for counter in self._faults for fault in FAULTS],
            self._broken.num_named(),
        ]
        sums = iter(
            _over_processes(np.array([number for part in parts for number in part], np.int64))
        )
        self._window.update({name: next(sums) for name in names})
        faults: list[dict[Fault, int]] = [
            {fault: n for fault in FAULTS if (n := next(sums))} for _ in self._faults
        ]
        for counts in faults:
            self._window.update({f"data/broken/{fault}": n for fault, n in counts.items()})
        self._broken.add(self._steps, faults, list(sums))
        self._steps, self._counts = 0, collections.Counter()
        self._faults = [collections.Counter() for _ in self._faults]

    def line(self, step: int) -> dict[str, float]:
        """Returns the metrics of the steps since the last call, up to `step`; `settle` before."""
        line: dict[str, float] = dict(sorted(self._window.items()))
        self._window.clear()
        for source in seen_after(self._config, self._records, step):
            line |= {
                f"data/rows/{source.name}": source.rows,
                f"data/epochs/{source.name}": source.epochs,
            }
        return line

    @property
    def state(self) -> dict[str, Any]:
        """What a run needs to go on from here, ready for JSON; `settle` before."""
        return copy.deepcopy({"window": dict(self._window), "broken": self._broken.state})


def _over_processes(values: np.ndarray) -> list[int]:
    if jax.process_count() > 1:
        values = np.asarray(multihost_utils.process_allgather(values)).sum(axis=0)
    return [int(value) for value in values]


class RecordIdsWriter:
    """Writes which records each step sees, one JSON line a step: {"step": 1, "paired": [ids in row
    order], ...}.
    """

    def __init__(self, workdir: pathlib.Path, *, resume_step: int = 0):
        """Opens `record_ids.jsonl`; one file a process, numbered, where several train together.

        Args:
            workdir: Folder of the run.
            resume_step: Finished steps. Lines of later ones are dropped: they are written again.

        Raises:
            UserError: steps are missing in the file.
        """
        suffix = f"-{jax.process_index():03d}" if jax.process_count() > 1 else ""
        path = workdir / f"record_ids{suffix}.jsonl"
        if path.exists():
            last = _cut_after(path, resume_step)
            require(
                last in (0, resume_step),
                f"{path} ends at step {last}, but the run goes on after {resume_step}: it was started without "
                "--log_record_ids in between. Move the file away, or leave the flag out.",
            )
        self._file = path.open("a")

    def write(self, step: int, origin: Origin) -> None:
        """Writes one step. It is with the system on return: killing the process loses nothing."""
        self._file.write(json.dumps({"step": step, **origin.ids}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _cut_after(path: pathlib.Path, step: int) -> int:
    """Drops half a line at the end and lines of steps after `step`. Returns the step of the last
    one left, or 0.
    """
    last = end = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                break
            last, end = json.loads(line)["step"], end + len(line)
    os.truncate(path, end)
    return last
