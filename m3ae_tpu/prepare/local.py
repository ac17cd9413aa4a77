"""The whole preparation on one machine: parts, then shards, over a pool of processes, then the
manifest.
"""

import collections
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

from m3ae_tpu.data.workers import end_with_parent
from m3ae_tpu.errors import UserError, require
from m3ae_tpu.files import atomic_path, atomic_write
from m3ae_tpu.prepare.cleaning import CleaningOptions
from m3ae_tpu.prepare.convert import (
    DROPPED,
    MANIFEST,
    PrepareOptions,
    Summary,
    clean,
    count_shards,
    drop_lines,
    first_place,
    gather_shard,
    make_manifest,
    require_fit,
    require_no_empty_shard,
    shard_name,
)
from m3ae_tpu.prepare.parts import Part, count_files

WORK_FOLDER = ".unfinished"
_INDEX = np.dtype(
    [("high", ">u8"), ("low", ">u8"), ("offset", "<i8"), ("size", "<i4"), ("file", "<i4")]
)
"""A kept record: its place in two halves, where its bytes lie, and in the file of which part."""

type Report = Callable[[str, int, int], None]
"""Is told a stage's name, how much of it is done, and how much there is."""


def prepare(
    parts: Sequence[Part],
    output: pathlib.Path,
    options: PrepareOptions,
    *,
    num_workers: int = 1,
    report: Report = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Writes shards, `manifest.json` and `dropped.jsonl` to `output` and returns the manifest.

    Called again after an interruption it goes on; the result is the same bytes, whatever
    `num_workers`.

    Raises:
        UserError: `output` holds a set, or an unfinished one of other input or options; nothing was
            kept; or
            a worker died.
    """
    require(
        not (output / MANIFEST).exists(),
        f"--output = {output} holds a prepared set already. Name another folder, or remove it.",
    )
    work = output / WORK_FOLDER
    if not work.exists():
        _require_nothing_of_ours(output, options.name)
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--output = {output} cannot be made ({error.strerror}). Name another folder."
        ) from None
    # The number of shards changes nothing of the cleaned parts, and neither does what is passed
    # over.
    task = dataclasses.asdict(dataclasses.replace(options, num_shards=0, shard_megabytes=1))
    read = [part.key() for part in parts if part.format != "passed over"]
    _require_same(work / "task", json.dumps({"parts": read, "options": task}))
    with _pool(num_workers) as each:
        clean_one = functools.partial(
            clean_part, options=options.cleaning, seed=options.seed, folder=work
        )
        summaries = list(_counted(each(clean_one, parts), "cleaning", len(parts), report))
        reasons = collections.Counter(reason for part in summaries for _, reason in part.dropped)
        given, kept = sum(part.given for part in summaries), sum(part.kept for part in summaries)
        if not kept:
            shutil.rmtree(work)  # Another input may follow.
        require_fit(given, kept, reasons)
        num_shards = count_shards(sum(part.bytes for part in summaries), kept, options)
        starts = _sort_index(work, [_part_name(part) for part in parts], num_shards)
        require_no_empty_shard(len(set(starts)) - 1, num_shards)
        _require_same(work / "num_shards", str(num_shards))
        tasks = [
            _ShardTask(
                path=output / shard_name(shard, num_shards, options),
                work=work,
                start=starts[shard],
                stop=starts[shard + 1],
                drop_duplicates=options.drop_duplicates,
            )
            for shard in range(num_shards)
        ]
        lines = list(_counted(each(_gather, tasks), "writing shards", num_shards, report))
    shards = dict(zip([task.path.name for task in tasks], lines, strict=True))
    manifest = make_manifest(summaries, shards, options, count_files(parts))
    with (
        atomic_path(output / DROPPED) as unfinished,
        unfinished.open("w", encoding="utf-8") as file,
    ):
        file.writelines(drop_lines(summaries, shards))
    # Last, so that its presence says that all is there.
    atomic_write(output / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    shutil.rmtree(work)
    return manifest


def _require_nothing_of_ours(output: pathlib.Path, name: str) -> None:
    """Refuses a folder in which something would be written over."""
    for there in (*output.glob(f"{glob.escape(name)}-*-of-*.array_record"), output / DROPPED):
        require(
            not there.exists(),
            f"--output = {output} holds {there.name}, of no set that is known here. Name another folder, or move it.",
        )


def clean_part(part: Part, options: CleaningOptions, seed: int, folder: pathlib.Path) -> Summary:
    """Cleans a part into `folder`, or returns what is there from an earlier call. Complete or not
    there at all.
    """
    name = _part_name(part)
    done = folder / f"{name}.json"
    if done.exists():
        return Summary(**json.loads(done.read_text(encoding="utf-8")))
    summary, index, offset = Summary(), [], 0
    with (folder / name).open("wb") as file:
        for place, data in clean(part.samples(), options, seed, summary):
            file.write(data)
            index.append(
                (int.from_bytes(place[:8]), int.from_bytes(place[8:]), offset, len(data), 0)
            )
            offset += len(data)
    np.array(index, _INDEX).tofile(folder / f"{name}.index")
    atomic_write(done, json.dumps(dataclasses.asdict(summary)))
    return summary


def _part_name(part: Part) -> str:
    return hashlib.sha256(part.key().encode("utf-8", "surrogateescape")).hexdigest()[:24]


def _sort_index(work: pathlib.Path, names: Sequence[str], num_shards: int) -> list[int]:
    """Writes the index of all kept records by place and returns where each shard starts in it, and
    the end.
    """
    pieces = [np.fromfile(work / f"{name}.index", _INDEX) for name in names]
    for number, piece in enumerate(pieces):
        piece["file"] = number
    index = np.concatenate(pieces)
    index = index[np.lexsort((index["low"], index["high"]))]
    np.save(work / "index.npy", index)
    atomic_write(work / "names", json.dumps(list(names)))
    firsts = np.array([first_place(shard, num_shards) for shard in range(num_shards)], np.uint64)
    return [*np.searchsorted(index["high"].astype(np.uint64), firsts).tolist(), len(index)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ShardTask:
    """A shard to gather: its records lie at `start` to `stop` of the sorted index in `work`."""

    path: pathlib.Path
    work: pathlib.Path
    start: int
    stop: int
    drop_duplicates: bool


def _gather(task: _ShardTask) -> dict[str, Any]:
    """Writes a shard, or returns its line of the manifest from an earlier call."""
    done = task.work / f"{task.path.name}.json"
    if done.exists() and task.path.exists():
        return json.loads(done.read_text(encoding="utf-8"))
    names = json.loads((task.work / "names").read_text(encoding="utf-8"))
    index = np.load(task.work / "index.npy", mmap_mode="r")[task.start : task.stop]

    def records() -> Iterator[bytes]:
        for _, _, offset, size, file in index.tolist():
            # Opened for each: there may be more parts than a process may hold open.
            with (task.work / names[file]).open("rb", buffering=0) as part:
                part.seek(offset)
                yield part.read(size)

    line = gather_shard(task.path, records(), drop_duplicates=task.drop_duplicates)
    atomic_write(done, json.dumps(line))
    return line


def _require_same(path: pathlib.Path, now: str) -> None:
    """Refuses to go on with the unfinished preparation of something else."""
    require(
        not path.exists() or path.read_text(encoding="utf-8") == now,
        f"--output = {path.parent.parent} holds an unfinished preparation of other input or options. "
        f"Repeat its command, name another folder, or remove {path.parent}.",
    )
    atomic_write(path, now)


def _counted[T](results: Iterable[T], stage: str, total: int, report: Report) -> Iterator[T]:
    report(stage, 0, total)
    for done, result in enumerate(results, 1):
        report(stage, done, total)
        yield result


@contextlib.contextmanager
def _pool(num_workers: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """Gives a map that keeps the order: over processes, or a plain one for a single worker."""
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
            "Start again, which goes on from here, with a smaller --num_workers."
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)
