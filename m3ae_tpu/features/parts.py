"""The files of features: parts of a fixed number of inputs, and what an interruption keeps.

A folder of features holds

- `part-00000.npy`, `part-00001.npy`, ...: a row for each example; of several arrays
  `part-00000.NAME.npy`, or one file of all in the other formats;
- `index.jsonl`: part, row, id, place and label of each row, in order;
- `dropped.jsonl`: place and reason of each input without a row;
- `manifest.json`: model, options, arrays, counts, and the parts with their digests. It is written
  last: its presence means that the features are complete;
- `.parts/`: what was asked for, and a summary of each finished part under its own digest.
"""

import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import safetensors.numpy

from m3ae_tpu.errors import UserError, require
from m3ae_tpu.features.examples import Example, Place
from m3ae_tpu.features.options import FileFormat
from m3ae_tpu.files import atomic_path, atomic_write, file_sha256

MANIFEST, INDEX, DROPPED = "manifest.json", "index.jsonl", "dropped.jsonl"
FORMAT, FORMAT_VERSION = "m3ae-tpu features", 1
_WORK = ".parts"
_TASK = "task.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """Summary of a finished part."""

    name: str
    start: Place
    """Place of its first input."""
    stop: Place
    """Place behind its last input."""
    inputs: int
    files: dict[str, dict[str, Any]]
    """Size and SHA-256 of each file."""
    rows: list[dict[str, Any]]
    """Lines of the index."""
    dropped: list[dict[str, Any]]
    """Lines of `dropped.jsonl`."""
    cut_texts: int
    """Texts that are longer than the model's text length."""

    def described(self) -> dict[str, Any]:
        """Returns what the manifest says of the part."""
        return {
            "name": self.name,
            "inputs": self.inputs,
            "rows": len(self.rows),
            "start": self.start,
            "files": self.files,
        }


class FeatureFolder:
    """A folder that features are written to, part by part."""

    def __init__(self, path: pathlib.Path, task: Mapping[str, Any]):
        """Makes the folder, or goes on where an earlier call was interrupted.

        Args:
            path: The folder.
            task: What decides the bytes of the files: model, input and options, as JSON values.

        Raises:
            UserError: the folder holds something else, or features of another task.
        """
        self.path, self._work = path, path / _WORK
        written = self._work / _TASK
        try:
            if written.exists():
                _require_same(path, json.loads(written.read_text()), task)
                return
            require(
                not path.exists() or (path.is_dir() and not any(path.iterdir())),
                f"--output = {path} is there already, and not a folder of unfinished or finished "
                "features. Name a new folder.",
            )
            self._work.mkdir(parents=True)
            atomic_write(written, json.dumps(task, indent=1) + "\n")
        except OSError as error:
            raise UserError(
                f"--output = {path} cannot be written ({error.strerror}). "
                "Name a folder that you may write to."
            ) from None
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{written} is damaged ({error}). Remove --output = {path}, and start again."
            ) from None

    def finished(self, number: int) -> Part | None:
        """Returns the summary of a part whose files are as they were written; None if it must be
        made, again or at all.
        """
        try:
            digest, text = self._summary(number).read_text().split("\n", 1)
            if digest != _digest(text):
                return None
            known = json.loads(text)
            places = {name: Place(*known[name]) for name in ("start", "stop")}
            part = Part(**known | places)
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None
        for name, written in part.files.items():
            file = self.path / name
            if not file.is_file() or file.stat().st_size != written["bytes"]:
                return None
            if file_sha256(file) != written["sha256"]:
                return None
        return part

    def write_part(
        self,
        number: int,
        start: Place,
        stop: Place,
        arrays: Mapping[str, np.ndarray],
        examples: Sequence[Example],
        dropped: Sequence[Example],
        *,
        cut_texts: int,
        format: FileFormat,
    ) -> Part:
        """Writes a part; an interruption leaves none of it that a later call would take for whole.

        Args:
            number: From 0 on.
            start: Place of its first input.
            stop: Place behind its last input.
            arrays: By name, a row for each example.
            examples: The rows' examples.
            dropped: Examples without a row, with their faults.
            cut_texts: Number of texts that were cut.
            format: Form of the files.
        """
        name = f"part-{number:05d}"
        rows = [
            {"part": number, "row": row, "id": example.id, "place": example.place}
            | ({"label": example.label} if example.label else {})
            for row, example in enumerate(examples)
        ]
        if format == "npy":
            names = [f"{name}.npy"] if len(arrays) == 1 else [f"{name}.{key}.npy" for key in arrays]
            for file_name, array in zip(names, arrays.values(), strict=True):
                with atomic_path(self.path / file_name) as path, path.open("wb") as file:
                    np.save(file, array)
        else:
            names = [f"{name}.{format}"]
            with atomic_path(self.path / names[0]) as path:
                write = _write_safetensors if format == "safetensors" else _write_parquet
                write(path, arrays, rows)
        files = {
            file_name: {
                "bytes": (self.path / file_name).stat().st_size,
                "sha256": file_sha256(self.path / file_name),
            }
            for file_name in names
        }
        part = Part(
            name=name,
            start=start,
            stop=stop,
            inputs=len(examples) + len(dropped),
            files=files,
            rows=rows,
            dropped=[_drop_line(example) for example in dropped],
            cut_texts=cut_texts,
        )
        summary = json.dumps(dataclasses.asdict(part))
        atomic_write(self._summary(number), f"{_digest(summary)}\n{summary}")
        return part

    def finish(self, parts: Sequence[Part], manifest: Mapping[str, Any]) -> None:
        """Writes the index, the list of what was dropped, and the manifest."""
        for name, lines in {
            INDEX: (line for part in parts for line in part.rows),
            DROPPED: (line for part in parts for line in part.dropped),
        }.items():
            with atomic_path(self.path / name) as path, path.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
        atomic_write(self.path / MANIFEST, json.dumps(manifest, indent=1) + "\n")

    def remove(self) -> None:
        """Removes the folder: the next call may have another input."""
        shutil.rmtree(self.path)

    def _summary(self, number: int) -> pathlib.Path:
        return self._work / f"{number:05d}.json"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _drop_line(example: Example) -> dict[str, str]:
    assert example.fault is not None
    reason, detail = example.fault
    return {"place": example.place, "reason": reason} | ({"detail": detail} if detail else {})


def _require_same(path: pathlib.Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuses to mix features of two tasks in a folder; names what differs."""
    names = [name for name in dict.fromkeys([*here, *there]) if there.get(name) != here.get(name)]
    shown = "; ".join(
        f"{name} = {_short(there.get(name))} there, {_short(here.get(name))} now"
        for name in names[:3]
    )
    require(
        not names,
        f"--output = {path} holds features of another {_NOUNS.get((names or [''])[0], 'form')} "
        f"({shown}). Name another folder, or give what was given then.",
    )


_NOUNS = {"model_digest": "model", "input_digest": "input"}


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return f"{value[:12]}..." if isinstance(value, str) and len(value) > 40 else str(value)


def _write_safetensors(
    path: pathlib.Path, arrays: Mapping[str, np.ndarray], rows: Sequence[Mapping[str, Any]]
) -> None:
    # safetensors writes the bytes of an array that is not contiguous in the wrong order.
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    safetensors.numpy.save_file(contiguous, path)


def _write_parquet(
    path: pathlib.Path, arrays: Mapping[str, np.ndarray], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Writes a row group of id, place, label and the arrays as lists of fixed size."""
    pyarrow, parquet = import_pyarrow()
    columns: dict[str, Any] = {
        name: pyarrow.array([row.get(name, "") for row in rows], pyarrow.string())
        for name in ("id", "place", "label")
    }
    for name, array in arrays.items():
        width = int(np.prod(array.shape[1:]))
        columns[name] = pyarrow.FixedSizeListArray.from_arrays(array.reshape(-1), width)
    parquet.write_table(pyarrow.table(columns), path)


def import_pyarrow() -> tuple[Any, Any]:
    """Imports pyarrow and its parquet.

    Raises:
        UserError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            "--format = parquet needs pyarrow, which is not installed: "
            "pip install 'm3ae-tpu[prepare]'."
        ) from None
    return pyarrow, pyarrow.parquet
