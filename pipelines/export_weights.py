"""Writes a trained model for other programs, runs what it wrote, and prints the difference.

    python -m pipelines.export_weights --model=runs/quickstart --format=hf --output=exports/hf

Formats:

- safetensors: everything, in a folder that all programs here take like a run.
- hf: the encoder for images as a ViTModel of Hugging Face's transformers.
- hf_mae: encoder and decoder for images as its ViTMAEForPreTraining.
- timm: the encoder for images as timm's VisionTransformer.
- onnx: the encoder for images, for texts and for both, a file each; batches and texts of any length
  (pip install 'm3ae-tpu[onnx]').
- stablehlo: the same as programs that JAX runs without this package, on CPU, GPU and TPU.

Preprocessing lies beside the weights, and README.md tells how to load them. Position codes are
those of one image size; --image_size takes another than that of the training.
"""

import pathlib
from typing import Literal

from m3ae_tpu.command_line import run_program
from m3ae_tpu.errors import UserError, require
from m3ae_tpu.files import Place
from m3ae_tpu.option_flags import define_flag

_MODEL = define_flag(
    "model",
    Place,
    None,
    "Workdir of a run, also gs://BUCKET/FOLDER, or a folder of import_weights or export_weights.",
    required=True,
)
_FORMAT = define_flag(
    "format",
    Literal["safetensors", "hf", "hf_mae", "timm", "onnx", "stablehlo"],
    None,
    "What to write.",
    required=True,
)
_OUTPUT = define_flag(
    "output", pathlib.Path, None, "Folder to write, missing or empty.", required=True
)
_IMAGE_SIZE = define_flag(
    "image_size",
    int,
    0,
    "Side of the images that the export takes, pixels; 0: as in training.",
    at_least=0,
)


def main(argv: list[str]) -> None:
    """Exports the model that the flags name."""
    if len(argv) > 1:
        raise UserError(f"argument {argv[1]!r} belongs to no flag. Write --model={argv[1]}.")
    require(_MODEL.value is not None, "--model is empty. Name a run's workdir or a model folder.")
    require(_OUTPUT.value is not None, "--output is empty. Name a new folder.")
    from m3ae_tpu.weights.exporting import export_model

    export_model(_MODEL.value, _FORMAT.value, _OUTPUT.value, image_size=_IMAGE_SIZE.value or None)


def run() -> None:
    """Entry point of the installed command `m3ae-export-weights`."""
    run_program(main)


if __name__ == "__main__":
    run()
