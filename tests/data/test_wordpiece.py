"""Guards WordPiece: pieces are those that Hugging Face's `tokenizers` 0.23 finds for BERT."""

import pickle

import numpy as np
import pytest

from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.errors import UserError

PIECES = ["[PAD]", "[UNK]", "[CLS]", "a", "cat", "##s", "##nap", "cafe", "deja", "vu", "日", "本"]
PIECES += ["語", "don", "'", "t", "$", "5", ".", "00", "—", "\u2028x", "i", "##stan", "zero"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    return Tokenizer(str(path))


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("A Cats catnap", ["a", "cat", "##s", "cat", "##nap"]),
        ("Café DÉJÀ vu", ["cafe", "deja", "vu"]),
        ("日本語cat", ["日", "本", "語", "cat"]),
        ("don't $5.00 — a", ["don", "'", "t", "$", "5", ".", "00", "—", "a"]),
        ("ze\u200bro\u0000 a\ufffd\tcat\na", ["zero", "a", "cat", "a"]),
        ("İstan", ["i", "##stan"]),
        ("dog catdog", ["[UNK]", "[UNK]"]),
        ("a" * 101 + " a", ["[UNK]", "a"]),
        ("", []),
        (" \u200b ", []),
    ],
)
def test_words_are_split_into_the_longest_pieces(tokenizer, text, pieces):
    ids, is_valid, _ = tokenizer.encode([text], 12)
    assert [PIECES[token] for token in ids[0][is_valid[0]]] == pieces


def test_a_vocabulary_is_a_tokenizer_as_others_are(tokenizer):
    assert tokenizer.vocab_size == len(PIECES)
    ids, is_valid, num_truncated = tokenizer.encode(["A cats' café", "a"], 4)
    assert num_truncated == 1
    np.testing.assert_array_equal(is_valid.sum(axis=1), [4, 1])
    assert tokenizer.pieces(ids[0]) == ["▁a", "▁cat", "s", "▁'"]
    assert tokenizer.decode(ids[0]) == "a cats '"
    copy = pickle.loads(pickle.dumps(tokenizer))
    np.testing.assert_array_equal(copy.encode(["a cat"], 4)[0], tokenizer.encode(["a cat"], 4)[0])


@pytest.mark.parametrize("content", [b"[PAD]\na\n", b"[PAD]\n[UNK]\n\xff\n", b"a\n[PAD]\n"])
def test_what_is_no_vocabulary_is_refused(tmp_path, content):
    path = tmp_path / "vocab.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is neither a SentencePiece model nor a WordPiece"):
        Tokenizer(str(path))


def test_lines_may_end_as_windows_ends_them(tmp_path, tokenizer):
    path = tmp_path / "vocab.txt"
    path.write_bytes("\r\n".join(PIECES).encode() + b"\r\n")
    assert Tokenizer(str(path)).vocab_size == tokenizer.vocab_size
