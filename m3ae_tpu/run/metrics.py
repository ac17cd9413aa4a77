"""Metrics of a run: a JSON line each time in `metrics.jsonl`, the same for TensorBoard and Weights
& Biases.
"""

import hashlib
import json
import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from m3ae_tpu.errors import UserError
from m3ae_tpu.files import atomic_write

FILE_NAME = "metrics.jsonl"


class MetricsWriter:
    """Writes scalars by step. A line is with the system when `write` returns: killing the process
    loses none.
    """

    def __init__(self, workdir: pathlib.Path, *, resume_step: int = 0, wandb_project: str = ""):
        """Opens the files of a run.

        Args:
            workdir: Folder of the run.
            resume_step: Finished steps of the state that the run goes on from. What was written
                about later ones is dropped: it is written again.
            wandb_project: Weights & Biases project that gets the metrics too; empty for none.

        Raises:
            UserError: `metrics.jsonl` is damaged, or `wandb` is not installed.
        """
        self._wandb = _start_wandb(workdir, wandb_project) if wandb_project else None
        path = workdir / FILE_NAME
        _keep_until(path, resume_step)
        self._file = path.open("a")
        self._tensorboard = _TensorBoardFile(workdir / "tensorboard", resume_step)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes scalars (Python's, NumPy's or JAX's) of one step.

        Numbers are written so that reading gives the same bits. JSON has no infinity and no NaN:
        they become null.
        """
        values = {name: _plain(value) for name, value in metrics.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **finite}, allow_nan=False) + "\n")
        self._file.flush()
        self._tensorboard.write(step, values)
        if self._wandb is not None:
            self._wandb.log(values, step=step)

    def flush(self) -> None:
        """Makes what was written visible to TensorBoard."""
        self._tensorboard.flush()

    def close(self) -> None:
        """Writes what is left and closes all files."""
        self._file.close()
        self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


class _TensorBoardFile:
    """An event file of a run. tensorboardX's own writer hands events to a thread: when that dies,
    of a full disk say, the run would wait for it for ever.
    """

    def __init__(self, folder: pathlib.Path, resume_step: int):
        # Imported here: it takes a second, and only a run needs it.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        self._Event: Any = event_pb2.Event  # pyright: ignore[reportAttributeAccessIssue]
        self._Summary: Any = summary_pb2.Summary  # pyright: ignore[reportAttributeAccessIssue]
        folder.mkdir(exist_ok=True)
        # Files are named by their second: one that starts in the same second would take the place
        # of the last.
        self._file = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        # From this step on TensorBoard forgets what older files say.
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

    The last line may be cut short, by a kill or because it is being written: it is left out.

    Raises:
        UserError: another line is no metrics.
    """
    path = workdir / FILE_NAME
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    # What follows the last newline is "", or half a line.
    return [_parse(path, number, line) for number, line in enumerate(lines[:-1], start=1)]


def _parse(path: pathlib.Path, number: int, line: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except ValueError:
        values = None
    if not isinstance(values, dict) or not isinstance(values.get("step"), int):
        raise UserError(
            f"{path}, line {number} = {line[:40]!r} is no line of metrics. Remove this line."
        )
    return values


def _keep_until(path: pathlib.Path, step: int) -> None:
    """Drops lines of later steps than `step`, and half a line at the end, in one piece."""
    if path.exists():
        # Before the first step nothing is worth keeping: what was said of step 0 is said again.
        kept = [
            values for values in read_metrics(path.parent) if values["step"] <= step and step > 0
        ]
        atomic_write(path, "".join(f"{json.dumps(values)}\n" for values in kept))


def _plain(value: Any) -> int | float:
    """Returns a scalar as Python's number; a float32 becomes the double of the same value."""
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
    # The same folder is the same run, also after a restart.
    name = hashlib.sha256(str(workdir.absolute()).encode()).hexdigest()[:16]
    return wandb.init(project=project, name=workdir.name, id=name, dir=str(workdir), resume="allow")
