"""Text to token ids by a SentencePiece model or a WordPiece vocabulary; training of such models."""

import hashlib
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, SupportsIndex

import numpy as np
import sentencepiece
from jaxtyping import Bool, Int32

from m3ae_tpu.data.manifest import locate
from m3ae_tpu.data.visible_text import is_blank
from m3ae_tpu.data.wordpiece import WordPiece, is_wordpiece
from m3ae_tpu.errors import UserError, require
from m3ae_tpu.storage.places import read_bytes

PAD_ID = 0
_LONGEST_PART = 4_192
"""Bytes of the longest text that SentencePiece learns from. Its limit can be set, but is written
into the model, whose bytes would change.
"""
_UNKNOWN = "\u2585"


class Tokenizer:
    """Encodes texts at a fixed length, without start and end tokens: the model has its own CLS.

    Pickles with the file's content, so that workers need no file. Thread-safe.
    """

    def __init__(self, path: str):
        """Reads a SentencePiece model or a WordPiece vocabulary (`vocab.txt`), also in a bucket.

        `starter/...` names one of the package.

        Raises:
            UserError: the file is missing, is neither of both, or pads with an id other than 0.
        """
        try:
            model = read_bytes(locate(path))
        except OSError as error:
            raise UserError(
                f"data.tokenizer = {path} cannot be read ({error.strerror}). Check the path, "
                "or use 'starter/tokenizer.model', the one that ships with the package."
            ) from None
        self._load(path, model)

    def _load(self, path: str, model: bytes) -> None:
        processor: Any
        try:
            # SentencePiece takes empty bytes as a model and fails at the first text.
            processor = (
                WordPiece(model)
                if is_wordpiece(model)
                else sentencepiece.SentencePieceProcessor(model_proto=model or b"no model")
            )
        except (RuntimeError, ValueError):
            raise UserError(
                f"data.tokenizer = {path} is neither a SentencePiece model nor a "
                "WordPiece vocabulary ([PAD] first, [UNK] in it), or it is damaged. "
                "Copy it again, or make one: python -m pipelines.train_tokenizer."
            ) from None
        require(
            processor.pad_id() == PAD_ID,
            f"data.tokenizer = {path} pads with id {processor.pad_id()} instead of {PAD_ID}. "
            "Make one with pad_id=0: python -m pipelines.train_tokenizer.",
        )
        self._processor = processor
        self.path = path
        self.model = model
        self.sha256 = hashlib.sha256(model).hexdigest()
        self.vocab_size: int = processor.vocab_size()

    def __getstate__(self) -> tuple[str, bytes]:
        return self.path, self.model

    def __setstate__(self, state: tuple[str, bytes]) -> None:
        self._load(*state)

    def encode(
        self, texts: Sequence[str], length: int
    ) -> tuple[Int32[np.ndarray, "rows length"], Bool[np.ndarray, "rows length"], int]:
        """Encodes texts, cut or padded to `length` tokens.

        Returns:
            Ids, padded with 0; True where an id is a token; and the number of texts that were cut.
        """
        # One by one: for a list, SentencePiece starts threads, which takes longer than a few texts.
        pieces: list[list[int]] = [self._processor.encode(text) for text in texts]
        ids = np.full((len(texts), length), PAD_ID, np.int32)
        for row, tokens in zip(ids, pieces, strict=True):
            row[: len(tokens)] = tokens[:length]
        lengths = np.array([len(tokens) for tokens in pieces], np.int64)
        is_valid = np.arange(length)[None, :] < lengths[:, None]
        return ids, is_valid, int(np.sum(lengths > length))

    def pieces(self, ids: Iterable[SupportsIndex]) -> list[str]:
        """Returns the piece of each id, for display; a word's first piece starts with '▁'."""
        return self._processor.id_to_piece([int(token) for token in ids])

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """Returns the text of ids; padding is skipped."""
        return self._processor.decode([int(token) for token in ids if int(token) != PAD_ID])


def train_tokenizer(texts: Iterator[str], *, vocab_size: int, max_texts: int = 5_000_000) -> bytes:
    """Trains a SentencePiece model: unigram pieces, and bytes for characters that they lack.

    Ids: padding 0, unknown 1, begin 2, end 3. The same texts in the same order give the same bytes.
    A text of any length is learned from, in parts of up to 4,192 bytes.

    Args:
        texts: Taken one by one; need not fit into memory.
        vocab_size: Largest number of pieces; a small corpus gives fewer.
        max_texts: Largest number of texts to learn from, more than 100, sampled at random; bounds
            time and memory. Each part of a long text counts as one.

    Raises:
        UserError: no text shows anything, or `vocab_size` is less than the texts have characters.
    """
    model = io.BytesIO()
    parts = (part for text in texts for part in _split(text) if not is_blank(part))
    first = next(parts, None)
    if first is None:
        raise UserError(
            "shards hold no text that shows anything. Name shards with captions or texts."
        )
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=itertools.chain([first], parts),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            byte_fallback=True,
            pad_id=PAD_ID,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            input_sentence_size=max_texts,
            shuffle_input_sentence=True,
            # The result depends on the number of threads.
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        needed = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error))
        if needed is None:
            raise UserError(
                f"SentencePiece does not learn from these texts: {str(error)[:120]}. "
                "Set another --vocab_size, or leave odd texts out."
            ) from None
        raise UserError(
            f"--vocab_size = {vocab_size} is too small: bytes and characters of these texts are "
            f"{int(needed[1]):,} pieces already. Set it to {needed[1]} or more."
        ) from None
    return model.getvalue()


def _split(text: str) -> Iterator[str]:
    """Yields the parts of a text short enough for SentencePiece, which leaves out longer ones.

    Parts end at a space or line break, or else between any two characters.
    """
    # A text with this character, which stands for unknown pieces, would be left out too.
    encoded, start = text.replace(_UNKNOWN, " ").encode(), 0
    while len(encoded) - start > _LONGEST_PART:
        end = start + _LONGEST_PART
        space = max(encoded.rfind(b" ", start + 1, end), encoded.rfind(b"\n", start + 1, end))
        if space < 0:
            while encoded[end] & 0xC0 == 0x80:  # Within a character.
                end -= 1
        else:
            end = space
        yield encoded[start:end].decode()
        start = end
    yield encoded[start:].decode()
