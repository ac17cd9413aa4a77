"""Makes a model folder of weights from another library: the paper's code, MAE, Hugging Face, timm.

    python -m pipelines.import_weights --format=m3ae --input=m3ae_base.pkl --output=models/m3ae \\
        --vocab=vocab.txt
    python -m pipelines.import_weights --format=mae --input=mae_visualize_vit_base.pth --output=...
    python -m pipelines.import_weights --format=hf --input=FOLDER --output=models/vit_mae
    python -m pipelines.import_weights --format=timm --input=FOLDER --output=models/vit

Every program here takes the folder like a run. Prints what became of every tensor: matched (the
same numbers), converted, dropped, or missing in the source; half a model is refused. Activation,
epsilon, position tables, mean and standard deviation come from the source; where it does not say
one, a note tells what was taken. Needs none of these libraries, and runs nothing that a file holds.
"""

import os
import pathlib
from typing import Literal

from m3ae_tpu.command_line import run_program
from m3ae_tpu.errors import UserError, require
from m3ae_tpu.option_flags import define_flag

_FORMAT = define_flag(
    "format",
    Literal["m3ae", "mae", "hf", "timm"],
    None,
    "Library that wrote the weights.",
    required=True,
)
_INPUT = define_flag("input", pathlib.Path, None, "File of weights, or its folder.", required=True)
_OUTPUT = define_flag(
    "output", pathlib.Path, None, "New folder for the model; missing or empty.", required=True
)
_VOCAB = define_flag(
    "vocab",
    pathlib.Path,
    None,
    "WordPiece vocabulary of a model with text: vocab.txt of bert-base-uncased.",
)
_NUM_HEADS = define_flag(
    "num_heads", int, None, "Attention heads of the encoder, where the source does not say it."
)
_DECODER_NUM_HEADS = define_flag("decoder_num_heads", int, None, "The same of the decoder.")
_IMAGE_MEAN = define_flag(
    "image_mean",
    tuple[float, float, float],
    None,
    "Mean of red, green and blue, on a scale of 0 to 1, where the source does not say it.",
)
_IMAGE_STD = define_flag(
    "image_std", tuple[float, float, float], None, "Standard deviation of the channels, likewise."
)


def main(argv: list[str]) -> None:
    """Imports the weights that the flags name."""
    if len(argv) > 1:
        raise UserError(f"argument {argv[1]!r} belongs to no flag. Write --input={argv[1]}.")
    for flag in (_INPUT, _OUTPUT):
        require(flag.value is not None, f"--{flag.name} is empty. Name a path.")
    # An accelerator may be held by a run that is training.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from m3ae_tpu.weights.imported import Choices
    from m3ae_tpu.weights.importing import import_weights, print_imported

    choices = Choices(
        num_heads=_NUM_HEADS.value,
        decoder_num_heads=_DECODER_NUM_HEADS.value,
        image_mean=_IMAGE_MEAN.value,
        image_std=_IMAGE_STD.value,
    )
    imported = import_weights(
        _INPUT.value, _OUTPUT.value, _FORMAT.value, choices=choices, vocab=_VOCAB.value
    )
    print_imported(imported)
    print(f"{_OUTPUT.value}: {sum(each.size for each in imported.arrays.values()):,} parameters")


def run() -> None:
    """Entry point of the installed command `m3ae-import-weights`."""
    run_program(main)


if __name__ == "__main__":
    run()
