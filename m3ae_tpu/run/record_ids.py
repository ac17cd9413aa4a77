"""Ids of the records that the steps of a run see, gathered from all processes."""

import json
import os
import pathlib

from m3ae_tpu.config import Kind
from m3ae_tpu.data.loader import BatchInfo
from m3ae_tpu.errors import require
from m3ae_tpu.parallel import processes
from m3ae_tpu.parallel.share import WHOLE, Share, in_order

FILE_NAME = "record_ids.jsonl"
_SHOWN = 3

type Ids = dict[Kind, list[str]]


class RecordIds:
    """The records of each step, by kind and in the order of the global batch's rows.

    Those of the latest steps are kept, for the message about a bad step. All are written if asked
    for, one JSON line a step: {"step": 1, "paired": [ids], ...}.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        is_logged: bool,
        resume_step: int = 0,
        share: Share = WHOLE,
    ):
        """Opens `record_ids.jsonl`, in the leader.

        Args:
            workdir: The run's directory.
            is_logged: Whether the ids are written.
            resume_step: Finished steps. Lines of later steps are dropped, as those steps run again.
            share: This process's in each batch.

        Raises:
            UserError: steps are missing in the file.
        """
        self._latest: dict[int, Ids] = {}
        self._workdir, self._is_logged, self._file = workdir, is_logged, None
        self._share = share
        if not is_logged or not processes.is_leader():
            return
        path = workdir / FILE_NAME
        if path.exists():
            last = _cut_after(path, resume_step)
            require(
                last in (0, resume_step),
                f"{path} ends at step {last}, but the run resumes after step {resume_step}: it was "
                "started without --log_record_ids in between. Move the file away, or leave the "
                "flag out.",
            )
        self._file = path.open("a")

    def add(self, step: int, info: BatchInfo) -> None:
        """Adds this process's rows of a step.

        Alone it writes them at once: killing the process loses nothing.
        """
        self._latest[step] = info.ids
        if processes.is_alone():
            self._write({step: info.ids})

    def reduce(self) -> None:
        """Writes the steps since the last call, and forgets them; all processes must call it."""
        if self._is_logged and not processes.is_alone():
            self._write(self._merged(self._latest))
        self._latest.clear()

    def explain(self, step: int) -> str:
        """Writes the ids of one of the latest steps to a file, and returns a sentence about them.

        All processes must call it.
        """
        ids = self._merged({step: self._latest[step]})[step]
        path = self._workdir / f"nonfinite-{step}.json"
        if processes.is_leader():
            path.write_text(json.dumps({"step": step, **ids}, indent=1) + "\n")
        shown = ", ".join(id for some in ids.values() for id in some[:_SHOWN])
        count = sum(map(len, ids.values()))
        return f"Its batch has the records {shown}, ... ({count} in all, see {path.name})."

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()

    def _merged(self, steps: dict[int, Ids]) -> dict[int, Ids]:
        """Returns the ids of the rows of all processes, in the order of the global batch."""
        if processes.is_alone():
            return steps
        texts = processes.gathered(json.dumps([self._share, list(steps.values())]))
        parts = [(Share(*share), values) for share, values in map(json.loads, texts)]
        shares = [share for share, _ in parts]
        return {
            step: {
                kind: in_order(shares, [values[number][kind] for _, values in parts])
                for kind in ids
            }
            for number, (step, ids) in enumerate(steps.items())
        }

    def _write(self, steps: dict[int, Ids]) -> None:
        if self._file is None:
            return
        for step, ids in steps.items():
            self._file.write(json.dumps({"step": step, **ids}) + "\n")
        self._file.flush()


def _cut_after(path: pathlib.Path, step: int) -> int:
    """Drops an unfinished last line and lines after `step`. Returns the last step left, or 0."""
    last = end = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                break
            last, end = json.loads(line)["step"], end + len(line)
    os.truncate(path, end)
    return last
