"""Writes the frozen features of images, texts, or both, for any other program to use.

    python -m pipelines.extract_features --model=runs/quickstart --input=photos --output=features

MODEL is the workdir of a run, or a folder that import_weights or export_weights wrote; its image
size, colours and vocabulary are used. INPUT is whatever prepare_data reads (a folder of images,
with captions or classes or without, a CSV, TSV or JSON-lines list, tars, parquet, HDF5, a text a
line) or shards (`starter/heldout-*`). Images are taken as they are found: turned upright, resized
and cropped at the centre.

OUTPUT gets parts of a fixed number of inputs (`part-00000.npy`, a row for each example),
`index.jsonl` (part, row, id, place and class of each row), `dropped.jsonl` (each input that could
not be encoded: it has no row) and `manifest.json`. After an interruption the same command
continues. The features of an example depend neither on the batch nor on the number of devices.
In Python: `m3ae_tpu.features.reading.read_features(folder).array()`.
"""

import pathlib

from m3ae_tpu.command_line import run_program
from m3ae_tpu.errors import UserError, require
from m3ae_tpu.features.options import FeatureOptions
from m3ae_tpu.files import Place
from m3ae_tpu.option_flags import define_flag, define_flags

_MODEL = define_flag(
    "model",
    Place,
    None,
    "Workdir of a run, also gs://BUCKET/FOLDER, or a model folder.",
    required=True,
)
_INPUT = define_flag("input", list, None, "Files or folders, separated by commas.", required=True)
_OUTPUT = define_flag(
    "output", pathlib.Path, None, "Folder of the features, made if missing.", required=True
)
_OPTIONS = define_flags(FeatureOptions)
_BATCH_SIZE = define_flag(
    "batch_size",
    int,
    64,
    "Examples that are decoded at a time; changes speed and memory, and no feature.",
    at_least=1,
)


def main(argv: list[str]) -> None:
    """Extracts the features that the flags ask for."""
    if len(argv) > 1:
        raise UserError(f"argument {argv[1]!r} belongs to no flag. Write --input={argv[1]}.")
    require(bool(_MODEL.value), "--model is empty. Name the workdir of a run.")
    require(bool(_INPUT.value), "--input is empty. Name files or folders.")
    require(bool(_OUTPUT.value), "--output is empty. Name the folder of the features.")
    options = _OPTIONS()
    from m3ae_tpu.features.extract import extract_features
    from m3ae_tpu.pretrained.loading import load

    extract_features(
        load(_MODEL.value, image_size=options.image_size or None),
        _INPUT.value,
        _OUTPUT.value,
        options,
        batch_size=_BATCH_SIZE.value,
        model_name=str(_MODEL.value),
    )


def run() -> None:
    """Entry point of the installed command `m3ae-extract-features`."""
    run_program(main)


if __name__ == "__main__":
    run()
