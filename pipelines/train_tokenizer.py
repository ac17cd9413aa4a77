"""Trains a SentencePiece tokenizer on the captions and texts of shards.

    python -m pipelines.train_tokenizer --shards='starter/train-*,starter/texts-*' \\
        --output=tokenizer.model

The starter set's tokenizer was made like this (4,000 pieces, about 10 s). All captions of an image
count. Pieces are unigrams with byte fallback: no character is unknown. Ids: padding 0, unknown 1,
begin 2, end 3. Name only shards for training, never those of an evaluation.
"""

import pathlib

from m3ae_tpu.command_line import run_program
from m3ae_tpu.errors import UserError, require
from m3ae_tpu.files import require_writable_file
from m3ae_tpu.option_flags import define_flag

_SHARDS = define_flag(
    "shards", list, ["starter/train-*", "starter/texts-*"], "Globs of ArrayRecord shards."
)
_VOCAB_SIZE = define_flag(
    "vocab_size", int, 4_000, "Pieces at most; a small corpus gives fewer.", at_least=300
)
_MAX_TEXTS = define_flag(
    "max_texts",
    int,
    5_000_000,
    "Texts to learn from at most, drawn at random; limits time and memory.",
    at_least=101,  # SentencePiece takes no smaller number.
)
_OUTPUT = define_flag(
    "output", pathlib.Path, None, "File of the model; replaced if it exists.", required=True
)


def main(argv: list[str]) -> None:
    """Trains the tokenizer that the flags ask for and prints its number of pieces."""
    if len(argv) > 1:
        raise UserError(
            f"argument {argv[1]!r} belongs to no flag. Quote globs: --shards='train-*'."
        )
    require(bool(_SHARDS.value), "--shards is empty. Name shards with captions or texts.")
    output = _OUTPUT.value
    require_writable_file("--output", output)
    from m3ae_tpu.prepare.tokenizer import train_tokenizer_on_shards

    num_pieces = train_tokenizer_on_shards(
        _SHARDS.value, output, vocab_size=_VOCAB_SIZE.value, max_texts=_MAX_TEXTS.value
    )
    print(f"{output}: {num_pieces:,} pieces")


def run() -> None:
    """Entry point of the installed command `m3ae-train-tokenizer`."""
    run_program(main)


if __name__ == "__main__":
    run()
