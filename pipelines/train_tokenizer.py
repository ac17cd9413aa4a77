"""Trains a SentencePiece tokenizer on the captions and texts of shards.

    python -m pipelines.train_tokenizer --shards='starter/train-*,starter/texts-*' \\
        --output=tokenizer.model

The starter set's tokenizer was made like this (4,000 pieces, about 10 s). All captions of an image
count. Pieces are unigrams with byte fallback: no character is unknown. Ids: padding 0, unknown 1,
begin 2, end 3. Name only shards for training, never those of an evaluation.
"""

import pathlib

from absl import flags

from m3ae_tpu.command_line import run_program
from m3ae_tpu.errors import UserError, require

_SHARDS = flags.DEFINE_list(
    "shards", ["starter/train-*", "starter/texts-*"], "Globs of ArrayRecord shards."
)
_VOCAB_SIZE = flags.DEFINE_integer(
    "vocab_size", 4_000, "Pieces at most; a small corpus gives fewer.", lower_bound=300
)
_MAX_TEXTS = flags.DEFINE_integer(
    "max_texts",
    5_000_000,
    "Texts to learn from at most, drawn at random; limits time and memory.",
    lower_bound=1,
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "File of the model; replaced if it exists.", required=True
)


def main(argv: list[str]) -> None:
    """Trains the tokenizer that the flags ask for and prints its number of pieces."""
    if len(argv) > 1:
        raise UserError(
            f"argument {argv[1]!r} belongs to no flag. Quote globs: --shards='train-*'."
        )
    output = pathlib.Path(_OUTPUT.value or "")
    require(
        output.parent.is_dir(),
        f"--output = {output} is in a folder that does not exist. Make it first.",
    )
    require(not output.is_dir(), f"--output = {output} is a folder. Name a file in it.")
    from m3ae_tpu.prepare.tokenizer import train_tokenizer_on_shards

    num_pieces = train_tokenizer_on_shards(
        _SHARDS.value or [], output, vocab_size=_VOCAB_SIZE.value, max_texts=_MAX_TEXTS.value
    )
    print(f"{output}: {num_pieces:,} pieces")


def run() -> None:
    """Entry point of the installed command `m3ae-train-tokenizer`."""
    run_program(main)


if __name__ == "__main__":
    run()
