"""WordPiece: words of texts split into pieces of a vocabulary, as BERT's uncased models do it.

For encoders that were trained on such ids; tokenizers of our own are SentencePiece models.
"""

import unicodedata
from collections.abc import Iterator

_PAD, _UNKNOWN = "[PAD]", "[UNK]"
_LONGEST_WORD = 100
_CJK = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)
"""Ranges of Chinese characters, each of which is a word."""


def is_wordpiece(content: bytes) -> bool:
    """Returns whether the content of a file is a vocabulary: a piece a line, padding first."""
    return content.startswith((b"[PAD]\n", b"[PAD]\r\n"))


class WordPiece:
    """A vocabulary and its rules, with the methods of `sentencepiece.SentencePieceProcessor`."""

    def __init__(self, content: bytes):
        """Takes the content of `vocab.txt`, of which `is_wordpiece` holds.

        Raises:
            ValueError: it is not UTF-8, or has no piece for what is unknown.
        """
        # No other ends of lines: some pieces are such characters.
        lines = content.decode("utf-8").removesuffix("\n").split("\n")
        self._pieces = [line.removesuffix("\r") for line in lines]
        self._ids = {piece: number for number, piece in enumerate(self._pieces)}
        if _UNKNOWN not in self._ids:
            raise ValueError(f"no piece {_UNKNOWN}")

    def pad_id(self) -> int:
        """Returns the id of padding."""
        return self._ids[_PAD]

    def vocab_size(self) -> int:
        """Returns the number of pieces."""
        return len(self._pieces)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, without `[CLS]` and `[SEP]`."""
        return [number for word in _words(text) for number in self._split(word)]

    def id_to_piece(self, ids: list[int]) -> list[str]:
        """Returns the piece of each id; a word's first piece starts with '▁'."""
        pieces = (self._pieces[token] for token in ids)
        return [each[2:] if each.startswith("##") else f"▁{each}" for each in pieces]

    def decode(self, ids: list[int]) -> str:
        """Returns the text of ids, in lower case."""
        return "".join(self.id_to_piece(ids)).replace("▁", " ").strip()

    def _split(self, word: str) -> list[int]:
        """Returns the longest pieces that a word is made of, from its start."""
        found, start = [], 0
        while start < len(word) <= _LONGEST_WORD:
            prefix = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((end for end in ends if prefix + word[start:end] in self._ids), None)
            if end is None:
                break
            found.append(self._ids[prefix + word[start:end]])
            start = end
        return found if word and start == len(word) else [self._ids[_UNKNOWN]]


def _words(text: str) -> Iterator[str]:
    """Yields the words of a text without accents, in lower case; punctuation is words too."""
    cleaned = "".join(_spaced(character) for character in text if not _is_removed(character))
    for run in cleaned.split():
        plain = "".join(
            character
            for character in unicodedata.normalize("NFD", run.lower())
            if unicodedata.category(character) != "Mn"
        )
        word = ""
        for character in plain:
            if _is_punctuation(character):
                if word:
                    yield word
                yield character
                word = ""
            else:
                word += character
        if word:
            yield word


def _is_removed(character: str) -> bool:
    is_control = unicodedata.category(character).startswith("C") and character not in "\t\n\r"
    return character in "\0\ufffd" or is_control


def _spaced(character: str) -> str:
    is_space = character in " \t\n\r" or unicodedata.category(character) == "Zs"
    is_chinese = any(first <= ord(character) <= last for first, last in _CJK)
    return " " if is_space else f" {character} " if is_chinese else character


def _is_punctuation(character: str) -> bool:
    # All ASCII that is neither letter nor digit counts, such as "$", which Unicode calls a symbol.
    is_ascii = character.isascii() and character.isprintable() and not character.isalnum()
    return (is_ascii and character != " ") or unicodedata.category(character).startswith("P")
