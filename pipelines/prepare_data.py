"""Turns a collection of images and texts into shuffled, checked ArrayRecord shards.

    python -m pipelines.prepare_data --input=downloads/cc12m --output=data/cc12m --kind=paired
    --max_shorter_side=320

Reads, told apart by content: webdataset tars (img2dataset's layout), parquet, the paper's HDF5,
folders of images with `.txt` files or a CSV, TSV or JSON-lines list, plain text; compressed ones
and `gs://` or `s3://` addresses too. Every image is decoded once, strictly; odd ones become upright
RGB JPEGs, good JPEGs keep their bytes. OUTPUT gets the shards, `manifest.json` (what was given,
kept and dropped, and a digest of each shard) and `dropped.jsonl` (all that was dropped, with its
reason). An interrupted call goes on when repeated. The same input and seed give the same bytes.

What outgrows a machine runs on Apache Beam (pip install 'm3ae-tpu[beam]'), to the same bytes; then
OUTPUT may be a `gs://` address too:

    python -m pipelines.prepare_data --input=gs://B/cc12m --output=gs://B/set
    --runner=DataflowRunner
        --beam_options=--project=P,--region=R,--temp_location=gs://B/tmp
"""

import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from absl import flags

from m3ae_tpu.command_line import run_program
from m3ae_tpu.errors import UserError, require

_INPUT = flags.DEFINE_list("input", None, "Files or folders, separated by commas.", required=True)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder that gets the set, made if missing.", required=True
)
_KIND = flags.DEFINE_enum(
    "kind",
    "paired",
    ["paired", "image", "text", "labelled"],
    "What an example must have; the rest of it is left out.",
)
_NAME = flags.DEFINE_string("name", "train", "Start of the shards' file names.")
_SEED = flags.DEFINE_integer("seed", 0, "Decides the order of the records.")
_RUNNER = flags.DEFINE_enum(
    "runner",
    "local",
    ["local", "DirectRunner", "DataflowRunner", "FlinkRunner"],
    "Processes of this machine, or a runner of Apache Beam; changes no byte.",
)
_BEAM_OPTIONS = flags.DEFINE_list(
    "beam_options", [], "Options of Beam and its runner, separated by commas."
)
_NUM_WORKERS = flags.DEFINE_integer(
    "num_workers",
    os.cpu_count() or 1,
    "Processes of --runner=local; changes no byte.",
    lower_bound=1,
)
_NUM_SHARDS = flags.DEFINE_integer(
    "num_shards", 0, "Shards; 0 takes as many as --shard_megabytes asks for."
)
_SHARD_MEGABYTES = flags.DEFINE_integer("shard_megabytes", 256, "Size of a shard.")
_MAX_SIDE = flags.DEFINE_integer(
    "max_shorter_side",
    0,
    "Larger images are resized to this shorter side, pixels; 0 keeps every size.",
)
_MIN_SIDE = flags.DEFINE_integer("min_shorter_side", 8, "Smaller images are dropped, pixels.")
_MIN_CHARACTERS = flags.DEFINE_integer("min_caption_characters", 1, "Shorter texts are dropped.")
_MAX_CHARACTERS = flags.DEFINE_integer(
    "max_caption_characters", 20_000, "Longer texts are dropped."
)
_DROP_DUPLICATES = flags.DEFINE_bool(
    "drop_duplicates", False, "Keep one of examples with the same content."
)
_LICENSE = flags.DEFINE_string("license", "", "Terms of use, written to every record.")


def main(argv: list[str]) -> None:
    """Prepares what the flags ask for, with a progress bar, and prints what came of it."""
    if len(argv) > 1:
        raise UserError(f"argument {argv[1]!r} belongs to no flag. Write --input={argv[1]}.")
    import rich.progress

    from m3ae_tpu.prepare.cleaning import CleaningOptions
    from m3ae_tpu.prepare.convert import DROPPED, MANIFEST, PrepareOptions
    from m3ae_tpu.prepare.local import prepare
    from m3ae_tpu.prepare.parts import find_parts
    from m3ae_tpu.prepare.samples import is_remote

    options = PrepareOptions(
        cleaning=CleaningOptions(
            kind=_KIND.value or "",
            max_shorter_side=_MAX_SIDE.value,
            min_shorter_side=_MIN_SIDE.value,
            min_caption_characters=_MIN_CHARACTERS.value,
            max_caption_characters=_MAX_CHARACTERS.value,
            license=_LICENSE.value or "",
        ),
        name=_NAME.value or "",
        seed=_SEED.value,
        num_shards=_NUM_SHARDS.value,
        shard_megabytes=_SHARD_MEGABYTES.value,
        drop_duplicates=_DROP_DUPLICATES.value,
    )
    require(bool(_OUTPUT.value), "--output is empty. Name the folder that gets the set.")
    output = (_OUTPUT.value or "").rstrip("/") or "/"
    columns = rich.progress.Progress.get_default_columns()
    with rich.progress.Progress(*columns, transient=True, disable=not sys.stdout.isatty()) as bars:
        tasks: dict[str, rich.progress.TaskID] = {}

        def report(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        report("looking at the input", 0, None)
        parts = find_parts(_INPUT.value or [], _KIND.value or "")
        report("looking at the input", len(parts), len(parts))
        if _RUNNER.value == "local":
            require(
                not is_remote(output),
                f"--output = {output} is not on this machine. Name a folder, or set --runner=DirectRunner.",
            )
            local = pathlib.Path(output).expanduser()
            for given in map(pathlib.Path, _INPUT.value or []):
                require(
                    not local.resolve().is_relative_to(given.expanduser().resolve()),
                    f"--output = {output} lies in --input = {given} and would become part of it. "
                    "Name a folder outside.",
                )
            manifest = prepare(parts, local, options, num_workers=_NUM_WORKERS.value, report=report)
        else:
            report(f"{_RUNNER.value} at work", 0, None)
            manifest = _beam()(
                parts, output, options, runner=_RUNNER.value, runner_options=_BEAM_OPTIONS.value
            )
    num_shards = len(manifest["shards"])
    print(
        f"{manifest['given']:,} given, {manifest['kept']:,} kept in {num_shards:,} shard{'s' * (num_shards > 1)}, "
        f"{manifest['bytes'] / 1e6:,.1f} MB"
    )
    if "passed over" in manifest["inputs"]:
        beside = [url for part in parts if part.format == "passed over" for url in part.urls]
        more = ", ..." if len(beside) > 3 else ""
        print(
            f"  passed over {len(beside):,} files beside them: {', '.join(map(os.path.basename, beside[:3]))}{more}"
        )
    for reason, count in sorted(manifest["dropped"].items(), key=lambda entry: -entry[1]):
        print(f"  dropped {count:,}: {reason}")
    print(f"{output}/{MANIFEST}; everything dropped is in {output}/{DROPPED}")


def _beam() -> Callable[..., dict[str, Any]]:
    try:
        from m3ae_tpu.prepare.beam import prepare_with_beam
    except ModuleNotFoundError as error:
        raise UserError(
            f"--runner = {_RUNNER.value} needs {error.name}, which is not installed: pip install 'm3ae-tpu[beam]'."
        ) from error
    return prepare_with_beam


def run() -> None:
    """Entry point of the installed command `m3ae-prepare-data`."""
    run_program(main)


if __name__ == "__main__":
    run()
