"""The whole preparation on one machine: parts, then shards, over a pool of processes, then the manifest."""

import collections
import concurrent.futures
import concurrent.futures.process
import contextlib
import dataclasses
import functools
import json
import multiprocessing
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from m3ae_tpu.config import ConfigError, require
from m3ae_tpu.data.prepare.cleaning import CleaningOptions
from m3ae_tpu.data.prepare.convert import (
    CleanPart,
    ShardTask,
    clean_part,
    gather_shard,
    part_name,
    sort_places,
    write_text,
)
from m3ae_tpu.data.prepare.parts import Part
from m3ae_tpu.data.records import VERSION

WORK_FOLDER = ".unfinished"
MANIFEST, DROPPED = "manifest.json", "dropped.jsonl"

type Report = Callable[[str, int, int], None]
"""Is told a stage's name, how much of it is done, and how much there is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """How a collection becomes a set of shards."""

    cleaning: CleaningOptions
    """What records must be like."""
    name: str = "train"
    """Start of the shards' file names."""
    seed: int = 0
    """Decides the order of the records."""
    num_shards: int = 0
    """Shards to write; 0 takes as many as `shard_megabytes` asks for."""
    shard_megabytes: int = 256
    """Size of a shard."""
    drop_duplicates: bool = False
    """Whether of examples with the same image and text all but one are dropped."""

    def __post_init__(self) -> None:
        require(self.num_shards >= 0, f"--num_shards = {self.num_shards} is negative. Set 0 or more.")
        require(
            self.shard_megabytes >= 1, f"--shard_megabytes = {self.shard_megabytes} is not positive. Set 256."
        )
        require("/" not in self.name and bool(self.name), f"--name = {self.name} is no file name. Set train.")


def prepare(
    parts: Sequence[Part],
    output: pathlib.Path,
    options: PrepareOptions,
    *,
    num_workers: int = 1,
    report: Report = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Writes shards, `manifest.json` and `dropped.jsonl` to `output` and returns the manifest.

    Called again after an interruption it goes on; the result is the same bytes, whatever `num_workers`.

    Raises:
        ConfigError: `output` holds a set, or an unfinished one of other input or options; nothing was kept; or
            a worker died.
    """
    require(
        not (output / MANIFEST).exists(),
        f"--output = {output} holds a prepared set already. Name another folder, or remove it.",
    )
    work = output / WORK_FOLDER
    work.mkdir(parents=True, exist_ok=True)
    _require_same_work(work, parts, options)
    clean = functools.partial(clean_part, options=options.cleaning, seed=options.seed, folder=work)
    with _pool(num_workers) as each:
        cleaned = list(_counted(each(clean, parts), "cleaning", len(parts), report))
        by_file = {part_name(part): done for part, done in zip(parts, cleaned, strict=True)}
        kept = sum(len(part.places) for part in cleaned)
        require(
            kept > 0,
            f"--input gave {sum(p.given for p in cleaned):,} examples and none is fit: {_reasons(cleaned)}.",
        )
        size = sum(sum(part.sizes) for part in cleaned)
        num_shards = options.num_shards or max(1, round(size / (options.shard_megabytes * 1e6)))
        starts = sort_places(work, by_file, num_shards)
        tasks = [
            ShardTask(
                path=output / f"{options.name}-{shard:05d}-of-{num_shards:05d}.array_record",
                folder=work,
                start=starts[shard],
                stop=starts[shard + 1],
                drop_duplicates=options.drop_duplicates,
            )
            for shard in range(num_shards)
        ]
        lines = list(_counted(each(gather_shard, tasks), "writing shards", num_shards, report))
    manifest = make_manifest(
        cleaned, dict(zip([task.path.name for task in tasks], lines, strict=True)), options
    )
    drops = [{"place": place, "reason": reason} for part in cleaned for place, reason in part.dropped]
    write_text(output / DROPPED, "".join(json.dumps(drop) + "\n" for drop in drops))
    # Last, so that its presence says that all is there.
    write_text(output / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    shutil.rmtree(work)
    return manifest


def make_manifest(
    cleaned: Iterable[CleanPart], shards: dict[str, dict[str, Any]], options: PrepareOptions
) -> dict[str, Any]:
    """Returns what `manifest.json` says: `given` = `kept` + the sum of `dropped`, shards with digests, histograms."""
    cleaned = list(cleaned)
    dropped = collections.Counter(reason for part in cleaned for _, reason in part.dropped)
    duplicates = sum(line["duplicates"] for line in shards.values())
    if options.drop_duplicates and duplicates:
        dropped["duplicate"] = duplicates
    return {
        "schema_version": VERSION,
        "kind": options.cleaning.kind,
        "license": options.cleaning.license,
        "given": sum(part.given for part in cleaned),
        "kept": sum(line["records"] for line in shards.values()),
        "dropped": dict(sorted(dropped.items())),
        "duplicates": duplicates,
        "bytes": sum(line["bytes"] for line in shards.values()),
        "options": dataclasses.asdict(options),
        "shorter_side_pixels": _added(part.shorter_sides for part in cleaned),
        "caption_characters": _added(part.caption_lengths for part in cleaned),
        "shards": {
            name: {key: line[key] for key in ("records", "bytes", "sha256")} for name, line in shards.items()
        },
    }


def _added(histograms: Iterable[dict[str, int]]) -> dict[str, int]:
    total: collections.Counter[str] = collections.Counter()
    for histogram in histograms:
        total.update(histogram)
    return dict(sorted(total.items(), key=lambda entry: int(entry[0])))


def _reasons(cleaned: Iterable[CleanPart]) -> str:
    counted = collections.Counter(reason for part in cleaned for _, reason in part.dropped)
    return (
        ", ".join(f"{reason} ({count:,})" for reason, count in counted.most_common(3))
        or "all parts are empty"
    )


def _require_same_work(work: pathlib.Path, parts: Sequence[Part], options: PrepareOptions) -> None:
    """Refuses to go on with the unfinished preparation of something else."""
    now = json.dumps({"parts": [part.key() for part in parts], "options": dataclasses.asdict(options)})
    path = work / "task"
    require(
        not path.exists() or path.read_text(encoding="utf-8") == now,
        f"--output = {work.parent} holds an unfinished preparation of other input or options. "
        f"Repeat its command, name another folder, or remove {work}.",
    )
    write_text(path, now)


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
    executor = concurrent.futures.ProcessPoolExecutor(num_workers, mp_context=context)
    try:
        yield executor.map
    except concurrent.futures.process.BrokenProcessPool as error:
        raise ConfigError(
            f"a worker process died ({error}), most likely for want of memory. "
            "Start again, which goes on from here, with a smaller --num_workers."
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)
