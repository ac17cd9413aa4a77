"""Texts that show something: trimming, and the texts that are empty by meaning."""

import unicodedata

_INVISIBLE = frozenset(["Cc", "Cf", "Mc", "Me", "Mn", "Zl", "Zp", "Zs"])
"""Categories of Unicode that show nothing alone: control and format, marks that join a letter, and
spaces.
"""
_BLANKS = frozenset("\u115f\u1160\u2581\u2800\u3164\uffa0\ufffc\ufffd\ufffe\uffff")
"""Letters and signs that show nothing: fillers of Hangul, blank Braille, what stands for an
object or a character that was lost, and the block that SentencePiece writes for a space.
"""
_SPACES = "".join(filter(str.isspace, map(chr, range(0x3001))))
_TRIMMED = (
    _SPACES + "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0)])) + "\xad\u200b\u2060\ufeff"
)
"""Characters that are taken off a text's ends. Joiners and tags stay: they shape the letter or the
flag before them.
"""


def trim(text: str) -> str:
    """Returns a text without spaces, control and zero-width characters at its ends."""
    return text.strip(_TRIMMED)


def is_blank(text: str) -> bool:
    """Returns whether a text shows nothing. Fast where an early character is visible."""
    for character in text:
        if unicodedata.category(character) not in _INVISIBLE and character not in _BLANKS:
            return False
    return True
