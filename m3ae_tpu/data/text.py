"""Text to token ids by a SentencePiece model, and the training of such a model."""

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import SupportsIndex

import numpy as np
import sentencepiece
from jaxtyping import Bool, Int32

from m3ae_tpu.data.manifest import locate
from m3ae_tpu.errors import UserError, require

PAD_ID = 0


class Tokenizer:
    """Encodes texts at a fixed length, without start and end tokens: the model has its own CLS.

    Pickles with the SentencePiece model, so that workers need no file. Thread-safe.
    """

    def __init__(self, path: str):
        """Reads a SentencePiece model; `starter/...` names a file of the package.

        Raises:
            UserError: the file is missing, is not a SentencePiece model, or pads with an id other
                than 0.
        """
        try:
            with open(locate(path), "rb") as file:
                model = file.read()
        except OSError as error:
            raise UserError(
                f"data.tokenizer = {path} cannot be read ({error.strerror}). Check the path, "
                "or use 'starter/tokenizer.model', the one that ships with the package."
            ) from None
        self._load(path, model)

    def _load(self, path: str, model: bytes) -> None:
        try:
            # SentencePiece takes empty bytes as a model and fails at the first text.
            processor = sentencepiece.SentencePieceProcessor(model_proto=model or b"no model")
        except RuntimeError:
            raise UserError(
                f"data.tokenizer = {path} is not a SentencePiece model, or a damaged one. "
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
        pieces: list[list[int]] = self._processor.encode(list(texts))
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

    Args:
        texts: Taken one by one; need not fit into memory.
        vocab_size: Largest number of pieces; a small corpus gives fewer.
        max_texts: Largest number of texts to learn from, sampled at random; bounds time and memory.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=texts,
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
    return model.getvalue()
