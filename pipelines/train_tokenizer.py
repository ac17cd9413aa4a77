"""Trains a SentencePiece tokenizer on the captions and texts of shards.

    python -m pipelines.train_tokenizer --shards='starter/train-*,starter/texts-*'
    --output=tokenizer.model

This is how the starter set's tokenizer was made (4,000 pieces, about 10 s). All wordings of a
caption count. Unigram pieces with byte fallback: no character is unknown. Ids: padding 0, unknown
1, begin 2, end 3. Give shards that are trained on, never those that a run is judged on.
"""

import pathlib
import sys
from collections.abc import Iterator

from absl import flags

from m3ae_tpu.command_line import run_program
from m3ae_tpu.data.records import Record
from m3ae_tpu.data.shards import Shards, open_shards
from m3ae_tpu.data.text import Tokenizer, train_tokenizer
from m3ae_tpu.errors import UserError, require
from m3ae_tpu.files import atomic_write

_SHARDS = flags.DEFINE_list(
    "shards", ["starter/train-*", "starter/texts-*"], "Globs of ArrayRecord shards."
)
_VOCAB_SIZE = flags.DEFINE_integer(
    "vocab_size", 4_000, "Pieces at most; a small corpus gives fewer.", lower_bound=300
)
_MAX_TEXTS = flags.DEFINE_integer(
    "max_texts",
    5_000_000,
    "Texts to learn from at most, drawn at random: bounds time and memory.",
    lower_bound=1,
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "File that gets the model; replaced if there.", required=True
)


def main(argv: list[str]) -> None:
    """Trains the tokenizer that the flags ask for and writes it in one piece."""
    if len(argv) > 1:
        raise UserError(
            f"argument {argv[1]!r} belongs to no flag. Quote globs: --shards='train-*'."
        )
    output = pathlib.Path(_OUTPUT.value or "")
    require(
        output.parent.is_dir(),
        f"--output={output} lies in a folder that does not exist. Make it first.",
    )
    require(not output.is_dir(), f"--output={output} is a folder. Name a file in it.")
    shards = [open_shards(pattern) for pattern in _SHARDS.value or []]
    require(
        any(record.captions for record in _records(shards)),
        f"--shards={','.join(_SHARDS.value or [])} hold no captions and no texts. Name shards with text.",
    )
    texts = (text for record in _records(shards) for text in record.captions if text)
    try:
        model = train_tokenizer(texts, vocab_size=_VOCAB_SIZE.value, max_texts=_MAX_TEXTS.value)
    except RuntimeError as error:
        raise UserError(
            f"--vocab_size={_VOCAB_SIZE.value} does not fit these texts ({str(error).rpartition(']')[2].strip()[:120]})"
        ) from None
    atomic_write(output, model)
    print(f"{output}: {Tokenizer(str(output)).vocab_size:,} pieces")


def _records(shards: list[Shards]) -> Iterator[Record]:
    """Yields all records that can be read; what cannot is counted on stderr, as training passes
    over it too.
    """
    for records in shards:
        num_damaged = len(records)
        for record in records.undamaged(range(len(records))):
            num_damaged -= 1
            yield record
        if num_damaged:
            print(
                f"{num_damaged:,} damaged records of {records.paths[0]} ... are left out",
                file=sys.stderr,
            )


def run() -> None:
    """Entry point of the installed command `m3ae-train-tokenizer`."""
    run_program(main)


if __name__ == "__main__":
    run()
