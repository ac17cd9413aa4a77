"""Turns a collection of images and texts into shuffled, checked ArrayRecord shards.

    python -m pipelines.prepare_data --input=downloads/cc12m --output=data/cc12m

Reads webdataset tars (img2dataset's layout), parquet, the HDF5 files of the paper's code, folders
of images with `.txt` files or with a CSV, TSV or JSON-lines list, and plain text. Files may be
compressed, or lie at `gs://` or `s3://`. Formats are recognised by content, not by name.

Every image is decoded once. Good JPEGs keep their bytes; other images become upright RGB JPEGs;
damaged ones are dropped. OUTPUT gets the shards, `manifest.json` (what was given, kept and dropped,
and a digest of each shard) and `dropped.jsonl` (each dropped sample with its reason). After an
interruption the same command continues. The same input and seed give the same bytes. OUTPUT may be
a `gs://` address: the set is made in TMPDIR and then sent there, the manifest last.

A collection that outgrows a machine is prepared by Apache Beam (pip install 'm3ae-tpu[beam]'), to
the same bytes:

    python -m pipelines.prepare_data --input=gs://B/cc12m --output=gs://B/set \\
        --runner=DataflowRunner \\
        --beam_options=--project=P,--region=R,--temp_location=gs://B/tmp
"""

import os
from typing import Literal

from m3ae_tpu.command_line import run_program
from m3ae_tpu.errors import UserError, require
from m3ae_tpu.option_flags import define_flag, define_flags
from m3ae_tpu.prepare.options import PrepareOptions

_INPUT = define_flag("input", list, None, "Files or folders, separated by commas.", required=True)
_OUTPUT = define_flag("output", str, None, "Folder of the set, made if missing.", required=True)
_OPTIONS = define_flags(PrepareOptions)
_RUNNER = define_flag(
    "runner",
    Literal["local", "DirectRunner", "DataflowRunner", "FlinkRunner"],
    "local",
    "Processes of this machine, or a runner of Apache Beam. The bytes are the same.",
)
_BEAM_OPTIONS = define_flag(
    "beam_options", list, [], "Options of Beam and its runner, separated by commas."
)
_NUM_WORKERS = define_flag(
    "num_workers",
    int,
    os.cpu_count() or 1,
    "Processes of --runner=local. The bytes are the same.",
    at_least=1,
)


def main(argv: list[str]) -> None:
    """Prepares the set that the flags ask for."""
    if len(argv) > 1:
        raise UserError(f"argument {argv[1]!r} belongs to no flag. Write --input={argv[1]}.")
    require(bool(_OUTPUT.value), "--output is empty. Name the folder of the set.")
    options = _OPTIONS()
    from m3ae_tpu.prepare.command import prepare_collection

    prepare_collection(
        _INPUT.value,
        _OUTPUT.value.rstrip("/") or "/",
        options,
        runner=_RUNNER.value,
        runner_options=_BEAM_OPTIONS.value,
        num_workers=_NUM_WORKERS.value,
    )


def run() -> None:
    """Entry point of the installed command `m3ae-prepare-data`."""
    run_program(main)


if __name__ == "__main__":
    run()
