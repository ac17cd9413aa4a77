"""Metrics of a run, written to `metrics.jsonl`, TensorBoard and Weights & Biases."""

import hashlib
import json
import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from m3ae_tpu.errors import UserError
from m3ae_tpu.files import atomic_write
from m3ae_tpu.storage.mirror import address_of

FILE_NAME = "metrics.jsonl"


class MetricsWriter:
    """Writes scalars by step. A written line survives the kill of the process."""

    def __init__(
        self, workdir: pathlib.Path | None, *, resume_step: int = 0, wandb_project: str = ""
    ):
        """Opens the files of a run.

        Args:
            workdir: Folder of the run; None for a process that writes no metrics.
            resume_step: Number of finished steps of the state that the run resumes from. Lines of
                later steps are dropped: the run writes them again.
            wandb_project: Weights & Biases project that gets the metrics too; empty for none.

        Raises:
            UserError: `metrics.jsonl` is damaged, or `wandb` is not installed.
        """
        self._wandb = self._file = self._tensorboard = None
        if workdir is None:
            return
        if wandb_project:
            self._wandb = _start_wandb(workdir, wandb_project)
        path = workdir / FILE_NAME
        _keep_until(path, resume_step)
        self._file = path.open("a")
        self._tensorboard = _TensorBoardFile(workdir / "tensorboard", resume_step)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes scalars (Python's, NumPy's or JAX's) of one step.

        Reading a number gives the same bits. Infinity and NaN become null, as JSON lacks them.
        """
        if self._file is None or self._tensorboard is None:
            return
        values = {name: _plain(value) for name, value in metrics.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **finite}, allow_nan=False) + "\n")
        self._file.flush()
        self._tensorboard.write(step, values)
        if self._wandb is not None:
            self._wandb.log(values, step=step)

    def flush(self) -> None:
        """Makes the written metrics visible to TensorBoard."""
        if self._tensorboard is not None:
            self._tensorboard.flush()

    def close(self) -> None:
        """Writes buffered events and closes all files."""
        for file in (self._file, self._tensorboard):
            if file is not None:
                file.close()
        if self._wandb is not None:
            self._wandb.finish()


class _TensorBoardFile:
    """An event file of a run, written in the caller's thread.

    tensorboardX's `SummaryWriter` hands events to a thread. When a full disk ends that thread, the
    run would wait for it for ever.
    """

    def __init__(self, folder: pathlib.Path, resume_step: int):
        # Imported here: it takes a second, and `read_metrics` does without.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        self._Event: Any = event_pb2.Event  # pyright: ignore[reportAttributeAccessIssue]
        self._Summary: Any = summary_pb2.Summary  # pyright: ignore[reportAttributeAccessIssue]
        folder.mkdir(exist_ok=True)
        # tensorboardX names files by their second: two of the same second would share a name.
        self._file = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        # TensorBoard drops events of older files from this step on.
        start = resume_step + 1 if resume_step else 0
        self._file.write_event(self._Event(step=start, session_log={"status": "START"}))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        scalars = [
            self._Summary.Value(tag=name, simple_value=value) for name, value in values.items()
        ]
        summary = self._Summary(value=scalars)
        self._file.write_event(self._Event(step=step, wall_time=time.time(), summary=summary))

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the lines of `metrics.jsonl`, oldest first; none if there is no such file.

    An incomplete last line is left out: a kill cut it, or it is being written.

    Raises:
        UserError: another line does not hold metrics.
    """
    path = workdir / FILE_NAME
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    # The last element is "", or an incomplete line.
    return [_parse(path, number, line) for number, line in enumerate(lines[:-1], start=1)]


def _parse(path: pathlib.Path, number: int, line: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except ValueError:
        values = None
    if not isinstance(values, dict) or not isinstance(values.get("step"), int):
        raise UserError(
            f"{path}, line {number} = {line[:40]!r} does not hold metrics. Remove this line."
        )
    return values


def _keep_until(path: pathlib.Path, step: int) -> None:
    """Drops lines of steps after `step`, and an incomplete last line, by one atomic write."""
    if path.exists():
        # A run that restarts at step 0 drops all old lines and writes them again.
        kept = [
            values for values in read_metrics(path.parent) if values["step"] <= step and step > 0
        ]
        atomic_write(path, "".join(f"{json.dumps(values)}\n" for values in kept))


def _plain(value: Any) -> int | float:
    """Returns a scalar as a Python number; a float32 becomes the double of the same value."""
    number = value.item() if hasattr(value, "item") else value
    return number if isinstance(number, int) else float(number)


def _start_wandb(workdir: pathlib.Path, project: str) -> Any:
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            f"logging.wandb_project = {project} needs the package wandb, which is not installed. "
            "Install it: pip install 'm3ae-tpu[wandb]'; or leave the project empty."
        ) from None
    # The id comes from the folder, so that a resumed run continues its wandb run.
    name = hashlib.sha256(address_of(workdir.absolute()).encode()).hexdigest()[:16]
    return wandb.init(project=project, name=workdir.name, id=name, dir=str(workdir), resume="allow")
