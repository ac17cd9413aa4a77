"""Preparation on one machine: a pool of processes cleans pieces, then writes shards."""

import concurrent.futures
import concurrent.futures.process
import contextlib
import dataclasses
import functools
import glob
import hashlib
import json
import multiprocessing
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from m3ae_tpu.data.manifest import MANIFEST, shard_name
from m3ae_tpu.data.workers import end_with_parent
from m3ae_tpu.errors import UserError, require
from m3ae_tpu.files import atomic_path, atomic_write
from m3ae_tpu.prepare.convert import (
    DROPPED,
    DROPPED_CAPTIONS,
    PASSED_OVER,
    Summary,
    clean,
    count_shards,
    first_key,
    gather_shard,
    make_lists,
    make_manifest,
    require_fit,
    require_no_empty_shard,
)
from m3ae_tpu.prepare.options import CleaningOptions, PrepareOptions
from m3ae_tpu.prepare.pieces import Collection, Piece

WORK_FOLDER = ".unfinished"
_INDEX = np.dtype(
    [("high", ">u8"), ("low", ">u8"), ("offset", "<i8"), ("size", "<i4"), ("file", "<i4")]
)
"""A kept record: its shuffle key in two halves, then position and size of its bytes in a piece's
file, and the number of the piece.
"""

type Report = Callable[[str, int, int], None]
"""Called with the name of a stage, how much of it is done, and how much there is."""


def prepare_locally(
    collection: Collection,
    output: pathlib.Path,
    options: PrepareOptions,
    *,
    num_workers: int = 1,
    report: Report = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Writes shards, `manifest.json` and `dropped.jsonl` to `output` and returns the manifest.

    Repeated after an interruption, it continues. The result is the same bytes, for any
    `num_workers`.

    Raises:
        UserError: `output` holds a set, or an unfinished one of other input or options; nothing was
            kept; or a worker died.
    """
    require(
        not (output / MANIFEST).exists(),
        f"--output = {output} holds a prepared set already. Name another folder, or remove it.",
    )
    work, pieces = output / WORK_FOLDER, collection.pieces
    if not work.exists():
        _require_no_set_files(output, options.name)
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--output = {output} cannot be made ({error.strerror}). Name another folder."
        ) from None
    _require_same(work / "task", task_of(collection, options))
    with _pool(num_workers) as each:
        clean_one = functools.partial(
            clean_piece, options=options.cleaning, seed=options.seed, folder=work
        )
        summaries = list(_reported(each(clean_one, pieces), "cleaning", len(pieces), report))
        kept = sum(summary.kept for summary in summaries)
        if not kept:
            shutil.rmtree(work)  # The next command may have another input.
        require_fit(summaries, collection.passed_over)
        num_shards = count_shards(sum(summary.bytes for summary in summaries), kept, options)
        starts = _sort_index(work, [_file_name(piece) for piece in pieces], num_shards)
        require_no_empty_shard(len(set(starts)) - 1, num_shards)
        _require_same(work / "num_shards", str(num_shards))
        tasks = [
            _ShardTask(
                path=output / shard_name(options.name, shard, num_shards),
                work=work,
                start=starts[shard],
                stop=starts[shard + 1],
                drop_duplicates=options.drop_duplicates,
            )
            for shard in range(num_shards)
        ]
        lines = list(_reported(each(_gather, tasks), "writing shards", num_shards, report))
    shards = dict(zip([task.path.name for task in tasks], lines, strict=True))
    manifest = make_manifest(summaries, shards, options, collection.count_files())
    for name, json_lines in make_lists(summaries, shards, collection.passed_over).items():
        with atomic_path(output / name) as path, path.open("w", encoding="utf-8") as file:
            file.writelines(json_lines)
    # Last: its presence means that the set is complete.
    atomic_write(output / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    shutil.rmtree(work)
    return manifest


def task_of(collection: Collection, options: PrepareOptions) -> str:
    """Returns what decides the cleaned pieces. The number of shards does not change them."""
    task = dataclasses.asdict(dataclasses.replace(options, num_shards=0, shard_megabytes=1))
    return json.dumps({"pieces": [piece.key() for piece in collection.pieces], "options": task})


def _require_no_set_files(output: pathlib.Path, name: str) -> None:
    """Refuses a folder in which a file would be overwritten."""
    lists = (output / name for name in (DROPPED, PASSED_OVER, DROPPED_CAPTIONS))
    for path in (*output.glob(f"{glob.escape(name)}-*-of-*.array_record"), *lists):
        require(
            not path.exists(),
            f"--output = {output} holds {path.name}, which belongs to no prepared set. "
            "Name another folder, or move it.",
        )


def clean_piece(piece: Piece, options: CleaningOptions, seed: int, folder: pathlib.Path) -> Summary:
    """Cleans a piece into `folder`, or returns the summary of an earlier call that did.

    A call that is interrupted leaves no summary.
    """
    name = _file_name(piece)
    done = folder / f"{name}.json"
    if done.exists():
        return Summary(**json.loads(done.read_text(encoding="utf-8")))
    summary, index, offset = Summary(), [], 0
    with (folder / name).open("wb") as file:
        for key, data in clean(piece.samples(), options, seed, summary):
            file.write(data)
            index.append((int.from_bytes(key[:8]), int.from_bytes(key[8:]), offset, len(data), 0))
            offset += len(data)
    np.array(index, _INDEX).tofile(folder / f"{name}.index")
    atomic_write(done, json.dumps(dataclasses.asdict(summary)))
    return summary


def _file_name(piece: Piece) -> str:
    return hashlib.sha256(piece.key().encode("utf-8", "surrogateescape")).hexdigest()[:24]


def _sort_index(work: pathlib.Path, names: Sequence[str], num_shards: int) -> list[int]:
    """Writes the index of all kept records in the order of their keys.

    Returns:
        Start of each shard in the index, and its end.
    """
    indices = [np.fromfile(work / f"{name}.index", _INDEX) for name in names]
    for number, index in enumerate(indices):
        index["file"] = number
    index = np.concatenate(indices)
    index = index[np.lexsort((index["low"], index["high"]))]
    np.save(work / "index.npy", index)
    atomic_write(work / "names", json.dumps(list(names)))
    firsts = np.array([first_key(shard, num_shards) for shard in range(num_shards)], np.uint64)
    return [*np.searchsorted(index["high"].astype(np.uint64), firsts).tolist(), len(index)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ShardTask:
    """A shard to write: its records are `start` to `stop` of the sorted index in `work`."""

    path: pathlib.Path
    work: pathlib.Path
    start: int
    stop: int
    drop_duplicates: bool


def _gather(task: _ShardTask) -> dict[str, Any]:
    """Writes a shard, or returns its line of the manifest from an earlier call that did."""
    done = task.work / f"{task.path.name}.json"
    if done.exists() and task.path.exists():
        return json.loads(done.read_text(encoding="utf-8"))
    names = json.loads((task.work / "names").read_text(encoding="utf-8"))
    index = np.load(task.work / "index.npy", mmap_mode="r")[task.start : task.stop]

    def records() -> Iterator[bytes]:
        for _, _, offset, size, file in index.tolist():
            # Opened for each record: there may be more pieces than a process may hold open files.
            with (task.work / names[file]).open("rb", buffering=0) as cleaned:
                cleaned.seek(offset)
                yield cleaned.read(size)

    line = gather_shard(task.path, records(), drop_duplicates=task.drop_duplicates)
    atomic_write(done, json.dumps(line))
    return line


def _require_same(path: pathlib.Path, now: str) -> None:
    """Refuses to continue the unfinished preparation of another input."""
    require(
        not path.exists() or path.read_text(encoding="utf-8") == now,
        f"--output = {path.parent.parent} holds an unfinished preparation of other input or "
        f"options. Repeat its command, name another folder, or remove {path.parent}.",
    )
    atomic_write(path, now)


def _reported[T](results: Iterable[T], stage: str, total: int, report: Report) -> Iterator[T]:
    report(stage, 0, total)
    for done, result in enumerate(results, 1):
        report(stage, done, total)
        yield result


@contextlib.contextmanager
def _pool(num_workers: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """Yields a `map` that keeps the order: over processes, or the built-in one for one worker."""
    if num_workers <= 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")
    executor = concurrent.futures.ProcessPoolExecutor(
        num_workers, mp_context=context, initializer=end_with_parent
    )
    try:
        yield executor.map
    except concurrent.futures.process.BrokenProcessPool as error:
        raise UserError(
            f"a worker process died ({error}), most likely for want of memory. "
            "Start again with a smaller --num_workers: finished work is kept."
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)
