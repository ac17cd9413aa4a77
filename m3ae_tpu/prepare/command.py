"""Preparation of a collection with a progress bar, on this machine or on Beam, and its outcome."""

import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import rich.progress

from m3ae_tpu.data.manifest import MANIFEST
from m3ae_tpu.errors import UserError, require
from m3ae_tpu.files import REMOTE, home_expanded, local_path, printable
from m3ae_tpu.prepare.bucket import prepare_to_bucket
from m3ae_tpu.prepare.convert import DROPPED, DROPPED_CAPTIONS, passed_over_lines
from m3ae_tpu.prepare.local import prepare_locally
from m3ae_tpu.prepare.opening import is_remote
from m3ae_tpu.prepare.options import PrepareOptions
from m3ae_tpu.prepare.pieces import Collection, find_pieces


def prepare_collection(
    inputs: Sequence[str],
    output: str,
    options: PrepareOptions,
    *,
    runner: str = "local",
    runner_options: Sequence[str] = (),
    num_workers: int = 1,
) -> None:
    """Prepares `inputs` into the folder `output` and prints what was kept and dropped.

    Args:
        inputs: Files and folders.
        output: Folder of the set; `gs://BUCKET/FOLDER` or, with a runner of Beam, any that all its
            workers reach.
        options: Form of the set.
        runner: `local`, or the name of a Beam runner.
        runner_options: Options of Beam and its runner.
        num_workers: Processes of `local`.

    Raises:
        UserError: input, output or runner cannot be used, or nothing of the input is fit.
    """
    columns = rich.progress.Progress.get_default_columns()
    with rich.progress.Progress(*columns, transient=True, disable=not sys.stdout.isatty()) as bars:
        tasks: dict[str, rich.progress.TaskID] = {}

        def report(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        in_bucket = output.startswith(REMOTE)
        if runner == "local" and in_bucket:
            _require_outside(output, inputs)
        folder = _local_output(output, inputs) if runner == "local" and not in_bucket else None
        report("looking at the input", 0, None)
        collection = find_pieces(list(inputs), options.cleaning.kind)
        report("looking at the input", 1, 1)
        if folder is not None:
            manifest = prepare_locally(
                collection, folder, options, num_workers=num_workers, report=report
            )
        elif runner == "local":
            manifest = prepare_to_bucket(
                collection, output, options, num_workers=num_workers, report=report
            )
        else:
            report(f"running on {runner}", 0, None)
            manifest = _beam(runner)(
                collection, output, options, runner=runner, runner_options=runner_options
            )
    _print_outcome(manifest, collection, output)


def _local_output(output: str, inputs: Sequence[str]) -> pathlib.Path:
    """Returns the folder `output`.

    Raises:
        UserError: it is remote, its name is not UTF-8, or it lies in a folder of the input.
    """
    require(
        not is_remote(output),
        f"--output = {output} is not on this machine. Name a folder, one at {REMOTE}, or set "
        "--runner=DirectRunner.",
    )
    folder = local_path("--output", output)
    for given in inputs:
        require(
            not folder.resolve().is_relative_to(pathlib.Path(home_expanded(given)).resolve()),
            f"--output = {output} lies in --input = {given} and would become part of it. "
            "Name a folder outside.",
        )
    return folder


def _require_outside(output: str, inputs: Sequence[str]) -> None:
    """Refuses an output in a bucket that lies in a folder of the input."""
    for given in inputs:
        require(
            not f"{output}/".startswith(f"{given.rstrip('/')}/"),
            f"--output = {output} lies in --input = {given} and would become part of it. "
            "Name a folder outside.",
        )


def _beam(runner: str) -> Callable[..., dict[str, Any]]:
    try:
        from m3ae_tpu.prepare.beam import prepare_with_beam
    except ModuleNotFoundError as error:
        raise UserError(
            f"--runner = {runner} needs {error.name}, which is not installed: "
            "pip install 'm3ae-tpu[beam]'."
        ) from error
    return prepare_with_beam


def _print_outcome(manifest: dict[str, Any], collection: Collection, output: str) -> None:
    num_shards = len(manifest["shards"])
    print(
        f"{manifest['given']:,} given, {manifest['kept']:,} kept in {num_shards:,} "
        f"shard{'s' * (num_shards > 1)}, {manifest['bytes'] / 1e6:,.1f} MB"
    )
    lines = []
    if classes := manifest["classes"]:
        names = ", ".join(f"{name} ({count:,})" for name, count in list(classes.items())[:5])
        more = ", ..." if len(classes) > 5 else ""
        lines.append(f"{len(classes):,} class{'es' * (len(classes) > 1)}: {names}{more}")
    if manifest["duplicates"] and not manifest["options"]["drop_duplicates"]:
        lines.append(
            f"{manifest['duplicates']:,} are copies of others; --drop_duplicates drops them"
        )
    lines += passed_over_lines(collection.passed_over)
    for reason, count in sorted(manifest["dropped"].items(), key=lambda entry: -entry[1]):
        lines.append(f"dropped {count:,}: {reason}")
    if manifest["left_out_pages"]:
        print(f"  left out {manifest['left_out_pages']:,} pages of TIFFs: only the first is kept")
    for reason, count in sorted(manifest["left_out_captions"].items(), key=lambda entry: -entry[1]):
        lines.append(
            f"left out {count:,} captions of kept examples, see {DROPPED_CAPTIONS}: {reason}"
        )
    for line in lines:
        print(f"  {printable(line)}")
    print(f"{output}/{MANIFEST}; everything dropped is in {output}/{DROPPED}")
