"""Goodput: how much of a run's wall time went into steps that were kept, and what took the rest.

`WORKDIR/goodput.jsonl` has a line for each start of the run, and one for each logged or saved step
with the seconds since that start. From them `wall_time` splits the time since the run's first start
into parts. The parts add up to it, whatever killed the run in between.
"""

import contextlib
import itertools
import json
import math
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from m3ae_tpu.errors import UserError, require
from m3ae_tpu.files import atomic_write
from m3ae_tpu.storage.mirror import address_of

FILE_NAME = "goodput.jsonl"
PARTS = {
    "steps": "productive steps",
    "startup": "start and compile",
    "data_wait": "waiting for data",
    "checkpoint": "checkpoint stall",
    "probe": "probes",
    "lost": "lost: steps not saved",
    "down": "not running",
}
"""Parts of the wall time, and their names for people."""
_MEASURED = ("startup", "data_wait", "checkpoint", "probe")
_ZERO: dict[str, float] = dict.fromkeys(_MEASURED, 0.0)
_SECONDS = 10.0
"""Longest time between two lines while steps are taken. A kill leaves no more than that unknown;
it counts as time in which the run was down."""


class Goodput:
    """Measures where the time of a run goes. A written line survives the kill of the process."""

    def __init__(self, workdir: pathlib.Path | None, *, resume_step: int, start_time: float):
        """Begins a start of the run.

        Args:
            workdir: The run's directory; None for a process that writes no files.
            resume_step: Finished steps of the state that the run resumes from.
            start_time: Time at which the program started, as `time.time()` gives it.

        Raises:
            UserError: `goodput.jsonl` is damaged.
        """
        self._start = time.monotonic() - max(0.0, time.time() - start_time)
        self._spent = dict(_ZERO)
        self._step, self._is_started = resume_step, False
        self._file = None
        first = {"start": start_time, "step": resume_step}
        earlier = []
        if workdir is not None:
            earlier = read_goodput(workdir)
            path = workdir / FILE_NAME
            if path.exists() and not path.read_bytes().endswith(b"\n"):  # A kill cut it.
                atomic_write(path, "".join(f"{json.dumps(line)}\n" for line in earlier))
            self._file = path.open("a")
        self._before = wall_time([*earlier, first | _ZERO | {"seconds": 0.0}])
        self._write(first | self._now())

    @contextlib.contextmanager
    def spent(self, part: str) -> Iterator[None]:
        """Counts the time in this context as a part: "data_wait", "checkpoint" or "probe"."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._spent[part] += time.monotonic() - start

    def dispatched(self, step: int) -> None:
        """Takes the number of a step that the device has got; the first one must have ended."""
        self._step = step
        if not self._is_started:
            self._is_started = True
            # Also what it waited for data: all until the end of the first step.
            self._spent = _ZERO | {"startup": time.monotonic() - self._start}
            self.record()
        elif time.monotonic() - self._written > _SECONDS:
            self.record()

    def record(self) -> None:
        """Writes where the time of this start went so far."""
        self._write({"step": self._step} | self._now())

    def parts(self) -> dict[str, float]:
        """Returns the seconds of each part since the run's first start."""
        now = self._now()
        seconds = now.pop("seconds")
        spent = now | {"steps": seconds - sum(now.values())}
        return {part: before + spent.get(part, 0.0) for part, before in self._before.items()}

    def line(self) -> dict[str, float]:
        """Returns the metrics of the run's wall time so far."""
        parts = self.parts()
        wall = sum(parts.values())
        seconds = {f"time/goodput/{part}_seconds": seconds for part, seconds in parts.items()}
        return {"time/goodput": parts["steps"] / wall, **seconds, "time/wall_seconds": wall}

    def close(self) -> None:
        """Writes the last line, and closes the file."""
        self.record()
        if self._file is not None:
            self._file.close()

    def _now(self) -> dict[str, float]:
        seconds = time.monotonic() - self._start
        spent = self._spent if self._is_started else _ZERO | {"startup": seconds}
        return {**spent, "seconds": seconds}

    def _write(self, line: Mapping[str, Any]) -> None:
        self._written = time.monotonic()
        if self._file is not None:
            rounded = {
                name: round(value, 3) if isinstance(value, float) else value
                for name, value in line.items()
            }
            self._file.write(json.dumps(rounded) + "\n")
            self._file.flush()


def process_start() -> float:
    """Returns the time at which this process began, as `time.time()` gives it.

    Where the system does not say it, that is now.
    """
    try:
        # Fields after the name of the program, which may hold anything.
        fields = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        began = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - began
    except (OSError, AttributeError):
        age = 0.0
    return time.time() - max(0.0, age)


def read_goodput(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the lines of `goodput.jsonl`, oldest first; none if there is no such file.

    An incomplete last line is left out: a kill cut it, or it is being written.

    Raises:
        UserError: another line does not hold such times.
    """
    path = workdir / FILE_NAME
    if not path.exists():
        return []
    lines = path.read_text(errors="replace").split("\n")
    return [_parse(path, number, line) for number, line in enumerate(lines[:-1], start=1)]


def wall_time(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the seconds of each part from the run's first start to the last line.

    Steps that a later start did not resume from are lost, with all that was done for them. The time
    between the last line of a start and the next start is time in which the run was down.
    """
    seconds = dict.fromkeys(PARTS, 0.0)
    kept_step, next_start = math.inf, None
    for start in reversed(_starts(lines)):
        first, last = start[0], start[-1]
        if next_start is not None:  # Clocks of two machines may differ.
            seconds["down"] += max(0.0, next_start - first["start"] - last["seconds"])
        zero = {**first, **_ZERO, "seconds": 0.0}
        for before, after in itertools.pairwise([zero, *start]):
            spent = {part: after[part] - before[part] for part in _MEASURED}
            rest = after["seconds"] - before["seconds"] - sum(spent.values())
            seconds["startup"] += spent.pop("startup")
            if after["step"] > kept_step:
                seconds["lost"] += rest + sum(spent.values())
                continue
            seconds["steps"] += rest
            for part, value in spent.items():
                seconds[part] += value
        kept_step, next_start = min(kept_step, first["step"]), first["start"]
    return seconds


def figures(workdir: pathlib.Path) -> dict[str, float]:
    """Returns the wall time of a run so far and its parts in seconds, and the goodput, for JSON.

    Raises:
        UserError: the directory has no `goodput.jsonl`, or a damaged one.
    """
    lines = read_goodput(workdir)
    require(
        bool(lines),
        f"{address_of(workdir)}/{FILE_NAME} does not exist or is empty. "
        "Name the workdir of a run that began.",
    )
    parts = wall_time(lines)
    wall = sum(parts.values())
    seconds = {f"{part}_seconds": value for part, value in parts.items()}
    return {
        "goodput": parts["steps"] / wall if wall else 0.0,
        "wall_seconds": wall,
        **seconds,
        "starts": sum("start" in line for line in lines),
    }


def describe(parts: Mapping[str, float]) -> str:
    """Returns the parts of a wall time as one line, largest first, without those below 0.1 %."""
    wall = sum(parts.values()) or 1.0
    shown = sorted(parts.items(), key=lambda item: -item[1])
    shares = [f"{value / wall:.1%} {PARTS[part]}" for part, value in shown if value >= 0.001 * wall]
    return f"wall time {duration(wall)}: {', '.join(shares)}"


def duration(seconds: float) -> str:
    """Returns a time in the unit that suits it."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:,.1f} h"


def _starts(lines: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Returns the lines of each start."""
    starts: list[list[Mapping[str, Any]]] = []
    for line in lines:
        if "start" in line:
            starts.append([])
        starts[-1].append(line)
    return starts


def _parse(path: pathlib.Path, number: int, line: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
        fields = {"step", "seconds", *_MEASURED, *(["start"] if number == 1 else [])}
        is_good = all(isinstance(values[name], int | float) for name in fields)
    except (ValueError, TypeError, KeyError):
        is_good, values = False, {}
    if not is_good:
        raise UserError(
            f"{path}, line {number} = {line[:40]!r} does not hold times of a run. "
            "Remove this line, or the file: only figures of time need it."
        )
    return values
