"""Guards the tokenizer: fixed length, counted cuts, and files that do not fit are named."""

import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from m3ae_tpu.data import text as text_module
from m3ae_tpu.data.records import Record
from m3ae_tpu.data.shards import open_shards, write_shard
from m3ae_tpu.data.text import Tokenizer, train_tokenizer
from m3ae_tpu.errors import UserError
from m3ae_tpu.prepare.convert import STORED
from m3ae_tpu.prepare.tokenizer import train_tokenizer_on_shards

TOKENIZER = Tokenizer("starter/tokenizer.model")


def test_short_texts_are_padded_and_long_ones_cut_and_counted():
    ids, is_valid, num_truncated = TOKENIZER.encode(["A cat.", "", "a very long story " * 30], 12)
    assert ids.shape == is_valid.shape == (3, 12)
    assert (ids.dtype, is_valid.dtype) == (np.int32, np.bool_)
    assert num_truncated == 1
    np.testing.assert_array_equal(is_valid.sum(axis=1), [3, 0, 12])
    np.testing.assert_array_equal(ids != 0, is_valid)


def test_a_text_that_just_fits_is_not_counted_as_cut():
    _, is_valid, num_truncated = TOKENIZER.encode(["A cat."], 3)
    assert is_valid.all()
    assert num_truncated == 0


def test_no_texts_give_no_rows():
    ids, is_valid, num_truncated = TOKENIZER.encode([], 5)
    assert ids.shape == is_valid.shape == (0, 5)
    assert num_truncated == 0


@pytest.mark.parametrize(
    "text", ["A cat.", "Käfer, 日本, ☃ and 🦊", "<s> [MASK] <pad> </s>", "a\x00b"]
)
def test_text_survives_and_never_contains_padding(text):
    ids, is_valid, _ = TOKENIZER.encode([text], 64)
    assert TOKENIZER.decode(ids[0]) == text
    assert not np.any(ids[is_valid] < 4)


@given(st.lists(st.text(max_size=30), max_size=5), st.integers(1, 20))
def test_valid_tokens_come_first_whatever_the_text(texts, length):
    ids, is_valid, _ = TOKENIZER.encode(texts, length)
    assert np.all(is_valid[:, :-1] >= is_valid[:, 1:])
    assert np.all((ids >= 0) & (ids < TOKENIZER.vocab_size))
    assert np.all(ids[~is_valid] == 0)


def test_training_captions_fit_into_64_tokens_but_for_a_few():
    captions = [record.captions[0] for record in open_shards("starter/train-*")]
    assert TOKENIZER.encode(captions, 64)[2] < 0.005 * len(captions)


def test_pieces_are_readable():
    ids, _, _ = TOKENIZER.encode(["A cat."], 4)
    assert TOKENIZER.pieces(ids[0]) == ["▁A", "▁cat", ".", "<pad>"]


def test_a_pickled_tokenizer_needs_no_file(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(TOKENIZER.model)
    packed = pickle.dumps(Tokenizer(str(path)))
    path.unlink()
    copy = pickle.loads(packed)
    assert (copy.sha256, copy.vocab_size, copy.path) == (TOKENIZER.sha256, 4000, str(path))
    np.testing.assert_array_equal(copy.encode(["A cat."], 5)[0], TOKENIZER.encode(["A cat."], 5)[0])


@pytest.mark.parametrize("content", [b"", b"no model" * 100, TOKENIZER.model[:100_000]])
def test_a_file_that_is_not_a_tokenizer_is_refused(tmp_path, content):
    path = tmp_path / "bad.model"
    path.write_bytes(content)
    with pytest.raises(
        UserError,
        match=rf"data\.tokenizer = {path} is neither a SentencePiece model nor a",
    ):
        Tokenizer(str(path))


def test_a_missing_tokenizer_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"data\.tokenizer = .*no\.model cannot be read \(No such file"
    ):
        Tokenizer(str(tmp_path / "no.model"))
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory"):
        Tokenizer(str(tmp_path))


def test_a_tokenizer_that_pads_with_another_id_is_refused(tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a cat and a dog"] * 10),
        model_writer=model,
        vocab_size=30,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path = tmp_path / "other.model"
    path.write_bytes(model.getvalue())
    with pytest.raises(UserError, match=r"other\.model pads with id -1 instead of 0"):
        Tokenizer(str(path))


def program(*flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "m3ae_tpu.pipelines.train_tokenizer", *flags]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_starter_tokenizer_learned_from_training_texts_only(tmp_path):
    path = tmp_path / "again.model"
    made = program("--shards=starter/train-*,starter/texts-*", f"--output={path}")
    assert made.returncode == 0, made.stderr
    assert made.stdout == f"{path}: 4,000 pieces\n"
    again = Tokenizer(str(path))
    pieces = set(again.pieces(range(again.vocab_size)))
    # A few pieces may differ: the last bits of its probabilities depend on the machine's logarithm.
    assert len(pieces & set(TOKENIZER.pieces(range(TOKENIZER.vocab_size)))) >= 3980


def test_training_twice_gives_the_same_bytes_and_a_small_corpus_fewer_pieces(tmp_path):
    texts = [f"a cat and {number} dogs" for number in range(50)]
    first, second = (train_tokenizer(iter(texts), vocab_size=4000) for _ in range(2))
    assert first == second
    (tmp_path / "small.model").write_bytes(first)
    assert 260 < Tokenizer(str(tmp_path / "small.model")).vocab_size < 400


def test_damaged_records_are_left_out_and_counted(tmp_path):
    records = [
        Record(id=str(n), captions=(f"a cat and {n} dogs, seen from above",)) for n in range(200)
    ]
    path = tmp_path / "texts.array_record"
    write_shard(path, records, "group_size:1,uncompressed")
    data = bytearray(path.read_bytes())
    data[data.index(b"a cat and 7 dogs")] ^= 1
    path.write_bytes(data)
    made = program(f"--shards={path}", "--vocab_size=300", f"--output={tmp_path}/t.model")
    assert made.returncode == 0, made.stderr
    assert made.stderr.startswith(f"1 damaged records of {path}")


def tokenizer_of(texts, path, vocab_size=400, **options):
    path.write_bytes(train_tokenizer(iter(texts), vocab_size=vocab_size, **options))
    return Tokenizer(str(path))


WORDS = ["quixotic", "zephyrine", "lambent", "obsidian", "\u732b\u304c\u5ea7\u308b"]


@pytest.mark.parametrize(
    "texts",
    [
        [" ".join(WORDS * 300)] * 3,
        ["\n".join(WORDS * 300)] * 3,
        ["\u732b\u304c\u5ea7\u308b" * 1_500, "x" * 20_000, *[" ".join(WORDS)] * 20],
        [f"{word} \u2585 {word}" for word in WORDS] * 20,
    ],
    ids=["long", "lines", "without spaces", "reserved character"],
)
def test_the_tokenizer_learns_from_every_text(texts, tmp_path):
    tokenizer = tokenizer_of(texts, tmp_path / "t.model")
    for word in WORDS:
        ids, is_valid, _ = tokenizer.encode([word], 32)
        pieces = tokenizer.pieces(ids[0][is_valid[0]])
        assert "".join(pieces).removeprefix("\u2581") == word  # No bytes.


def test_long_texts_are_cut_between_characters_and_lose_none():
    for text in ("word " * 3_000, "\u732b" * 20_000, "\U0001f600a" * 9_000, "x" * 4_192, ""):
        parts = list(text_module._split(text))
        assert "".join(parts) == text
        assert all(len(part.encode()) <= 4_192 for part in parts)
    assert list(text_module._split("word " * 3_000))[1].startswith(" word")


def test_a_vocabulary_that_is_too_small_for_the_characters_is_refused_with_the_smallest():
    texts = ["".join(chr(0x4E00 + number) for number in range(500))]
    with pytest.raises(UserError, match=r"vocab_size = 400 .* Set it to (\d+) or more") as caught:
        train_tokenizer(iter(texts), vocab_size=400)
    smallest = int(str(caught.value).split()[-3])
    assert train_tokenizer(iter(texts), vocab_size=smallest)


@pytest.mark.parametrize("texts", [[], [""], ["\u200b", " "], ["\u2585"]])
def test_texts_that_show_nothing_make_no_tokenizer(texts):
    with pytest.raises(UserError, match="no text that shows anything"):
        train_tokenizer(iter(texts), vocab_size=400)


def test_blank_texts_are_counted_aloud(tmp_path, capsys):
    records = [Record(id=str(number), captions=("a cat", "\u200b")) for number in range(9)]
    write_shard(tmp_path / "train-00000-of-00001.array_record", records, STORED)
    shards = [f"{tmp_path}/train-*"]
    train_tokenizer_on_shards(shards, tmp_path / "t.model", vocab_size=400, max_texts=200)
    assert "9 texts that show nothing are left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (
            "--shards=starter/images-*",
            "error: --shards = starter/images-* hold no captions and no texts.",
        ),
        (
            "--shards=starter/no-*",
            "error: shards = starter/no-* matches no file that you may read.",
        ),
        (
            "--output=no/such/folder.model",
            "error: --output = no/such/folder.model is in a folder that does not exist",
        ),
        ("--max_texts=5", "error: --max_texts = 5 is less than 101."),
        ("--output=tests", "error: --output = tests is a folder. Name a file in it."),
    ],
)
def test_what_the_program_cannot_use_is_named(tmp_path, flag, message):
    ended = program(f"--output={tmp_path}/t.model", flag)
    assert ended.returncode == 2
    assert ended.stderr.startswith(message)
    assert list(tmp_path.iterdir()) == []
