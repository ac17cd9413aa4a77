"""Preparation as an Apache Beam pipeline, for collections that outgrow a machine."""

# pyright: reportMissingImports=false
# Beam is installed in an environment of its own only.

import json
import os
import pathlib
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from m3ae_tpu.data.manifest import MANIFEST, shard_name
from m3ae_tpu.errors import UserError, require
from m3ae_tpu.prepare.convert import (
    Summary,
    clean,
    count_shards,
    gather_shard,
    make_lists,
    make_manifest,
    require_fit,
    require_no_empty_shard,
    shard_of,
)
from m3ae_tpu.prepare.opening import file_system, is_remote, open_file
from m3ae_tpu.prepare.options import PrepareOptions
from m3ae_tpu.prepare.pieces import Collection, Piece


def prepare_with_beam(
    collection: Collection,
    output: str,
    options: PrepareOptions,
    *,
    runner: str,
    runner_options: Sequence[str],
) -> dict[str, Any]:
    """Writes shards, `manifest.json` and `dropped.jsonl` to `output` and returns the manifest.

    The bytes are those of `prepare_locally`. Beam's own shuffle carries the cleaned records. A
    worker holds the records of one shard at a time.

    Args:
        collection: Input.
        output: Folder that all workers reach, `gs://...` for example.
        options: Form of the set.
        runner: Name of a Beam runner.
        runner_options: Options of Beam and the runner, `--project=NAME` for example.

    Raises:
        UserError: `output` holds a set already; nothing was kept; or a shard is empty.
    """
    require(
        not _exists(f"{output}/{MANIFEST}"),
        f"--output = {output} holds a prepared set already. Name another folder, or remove it.",
    )
    settings = PipelineOptions([f"--runner={runner}", *runner_options])
    try:
        with beam.Pipeline(options=settings) as pipeline:
            _build(pipeline, collection, output, options)
    except Exception as error:
        # An error of a worker arrives as it was, or as text followed by Beam's own.
        text = f"UserError: {error}" if isinstance(error, UserError) else str(error)
        message = re.search(r"UserError: ([^\n]*?)( \[while running|\n|$)", text)
        if message is None:
            raise
        raise UserError(message[1]) from error
    with open_file(f"{output}/{MANIFEST}") as file:
        return json.loads(file.read())


def _build(
    pipeline: beam.Pipeline, collection: Collection, output: str, options: PrepareOptions
) -> None:
    cleaned = (
        pipeline
        | "Pieces" >> beam.Create(list(enumerate(collection.pieces)))
        | "Spread" >> beam.Reshuffle()
        | "Clean" >> beam.ParDo(_Clean(options)).with_outputs("summaries", main="records")
    )
    num_shards = beam.pvalue.AsSingleton(
        cleaned.summaries
        | "Sizes" >> beam.Map(lambda numbered: (numbered[1].bytes, numbered[1].kept))
        | "Add" >> beam.CombineGlobally(beam.combiners.TupleCombineFn(sum, sum))
        | "Count shards"
        >> beam.MapTuple(lambda size, records: count_shards(size, records, options))
    )
    lines = (
        cleaned.records
        | "Key" >> beam.Map(lambda record, total: (shard_of(record[0], total), record), num_shards)
        | "Group" >> beam.GroupByKey()
        | "Write" >> beam.Map(_write_shard, num_shards, output, options)
    )
    _ = (
        pipeline
        | "Once" >> beam.Create([None])
        | "Finish"
        >> beam.Map(
            _finish,
            beam.pvalue.AsList(cleaned.summaries),
            beam.pvalue.AsList(lines),
            num_shards,
            output,
            options,
            collection,
        )
    )


class _Clean(beam.DoFn):
    """Yields shuffle key and bytes of a piece's records, then the piece's number and summary."""

    def __init__(self, options: PrepareOptions):
        self.options = options

    def process(self, element: tuple[int, Piece]) -> Iterator[Any]:
        number, piece = element
        summary = Summary()
        yield from clean(piece.samples(), self.options.cleaning, self.options.seed, summary)
        yield beam.pvalue.TaggedOutput("summaries", (number, summary))


def _write_shard(
    keyed: tuple[int, Iterable[tuple[bytes, bytes]]],
    num_shards: int,
    output: str,
    options: PrepareOptions,
) -> tuple[str, dict[str, Any]]:
    name = shard_name(options.name, keyed[0], num_shards)
    records = (data for _, data in sorted(keyed[1]))
    with tempfile.TemporaryDirectory() as folder:
        # ArrayRecord writes only local files.
        path = pathlib.Path(folder) / name
        line = gather_shard(path, records, drop_duplicates=options.drop_duplicates)
        _store(path, f"{output}/{name}")
    return name, line


def _finish(
    _: None,
    numbered: list[tuple[int, Summary]],
    lines: list[tuple[str, dict[str, Any]]],
    num_shards: int,
    output: str,
    options: PrepareOptions,
    collection: Collection,
) -> None:
    """Writes the lists, then the manifest, whose presence means that the set is complete."""
    summaries = [summary for _, summary in sorted(numbered, key=lambda pair: pair[0])]
    require_fit(summaries, collection.passed_over)
    require_no_empty_shard(len(lines), num_shards)
    manifest = make_manifest(summaries, dict(lines), options, collection.count_files())
    lists = make_lists(summaries, dict(lines), collection.passed_over)
    with tempfile.TemporaryDirectory() as folder:
        for name, json_lines in lists.items():
            path = pathlib.Path(folder) / name
            with path.open("w", encoding="utf-8") as file:
                file.writelines(json_lines)
            _store(path, f"{output}/{name}")
        finished = pathlib.Path(folder) / MANIFEST
        finished.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        _store(finished, f"{output}/{MANIFEST}")


def _exists(url: str) -> bool:
    if not is_remote(url):
        return os.path.exists(url)
    system, path = file_system(url)
    return system.exists(path)


def _store(path: pathlib.Path, url: str) -> None:
    """Copies a finished file to its address, where it appears only when it is complete."""
    if is_remote(url):
        system, remote = file_system(url)
        system.put_file(str(path), remote)  # Object stores show no unfinished object.
        return
    folder, name = os.path.split(url)
    os.makedirs(folder, exist_ok=True)
    # Beam may run two attempts at the same shard at the same time.
    unfinished = os.path.join(folder, f".{name}.{uuid.uuid4().hex}")
    shutil.copyfile(path, unfinished)
    os.replace(unfinished, url)
