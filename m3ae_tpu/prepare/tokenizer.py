"""A tokenizer trained on the captions and texts of shards."""

import pathlib
import sys
from collections.abc import Iterator, Sequence

from m3ae_tpu.data.records import Record
from m3ae_tpu.data.shards import Shards, open_shards
from m3ae_tpu.data.text import Tokenizer, train_tokenizer
from m3ae_tpu.data.visible_text import is_blank
from m3ae_tpu.errors import require
from m3ae_tpu.files import atomic_write


def train_tokenizer_on_shards(
    patterns: Sequence[str], output: pathlib.Path, *, vocab_size: int, max_texts: int
) -> int:
    """Writes a SentencePiece model of all texts of the shards and returns its number of pieces.

    Damaged records and texts that show nothing are left out, and counted on stderr.

    Args:
        patterns: Globs of shards.
        output: File of the model.
        vocab_size: Pieces at most; a small corpus gives fewer.
        max_texts: Texts to learn from at most, drawn at random.

    Raises:
        UserError: the shards have no text, or more characters than `vocab_size`.
    """
    shards = [open_shards(pattern) for pattern in patterns]
    require(
        any(record.captions for record in _records(shards)),
        f"--shards = {','.join(patterns)} hold no captions and no texts. Name shards with text.",
    )
    model = train_tokenizer(_texts(shards), vocab_size=vocab_size, max_texts=max_texts)
    atomic_write(output, model)
    return Tokenizer(str(output)).vocab_size


def _texts(shards: Sequence[Shards]) -> Iterator[str]:
    num_blank = 0
    for record in _records(shards):
        visible = [text for text in record.captions if not is_blank(text)]
        num_blank += len(record.captions) - len(visible)
        yield from visible
    if num_blank:
        print(f"{num_blank:,} texts that show nothing are left out", file=sys.stderr)


def _records(shards: Sequence[Shards]) -> Iterator[Record]:
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
