"""Guards the cleaning of captions: good ones are kept as they were meant, others are counted."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from prepare_forms import jpeg, run

from m3ae_tpu.data.examples import Example, Examples
from m3ae_tpu.data.records import Record
from m3ae_tpu.data.shards import open_shards, write_shard
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.data.visible_text import is_blank
from m3ae_tpu.prepare.cleaning import Unfit, clean_captions, clean_sample
from m3ae_tpu.prepare.convert import STORED
from m3ae_tpu.prepare.options import CleaningOptions
from m3ae_tpu.prepare.samples import Fault, Sample

OPTIONS = CleaningOptions(kind="text")
BLANK = [
    "",
    " \n",
    "\u3000",
    "\0",
    "\x01\x02",
    "\u200b",
    "\ufeff",
    "\u2060",
    "\xad",
    "\u200d\u200c",
    "\ufffd\ufffd",
    "\ufffc",
    "\ufe0f",
    "\u0301",
    "\u2800",
    "\u3164",
    "\u1160\u115f",
    "\u202a\u202c",
    "\U000e0067\U000e007f",
    "\u2581",
]
VISIBLE = [
    "a",
    "!",
    "...",
    "\N{CAT FACE}",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\U0001f1eb\U0001f1f7",
    "\U0001f3f4\U000e0067\U000e0062\U000e007f",
    "\u732b",
    "\ud55c\uad6d",
    "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "\u0647\u200d",
    "1\ufe0f\u20e3",
]
TOKENIZER = Tokenizer("starter/tokenizer.model")


@pytest.mark.parametrize("text", BLANK, ids=ascii)
def test_a_text_that_shows_nothing_is_empty_in_preparation_and_training(text, tmp_path):
    with pytest.raises(Unfit, match="empty text"):
        clean_sample(Sample(place="p", captions=(text,)), OPTIONS)
    path = tmp_path / "train-00000-of-00001.array_record"
    write_shard(
        path, [Record(id="a", captions=(text,)), Record(id="b", captions=(text, "good"))], STORED
    )
    examples = Examples(open_shards(str(path)), "text", range(2))
    assert examples.read(0) == "no_caption"
    assert examples.read(1) == Example(id="b", captions=("good",), image=b"")


@pytest.mark.parametrize("text", VISIBLE, ids=ascii)
def test_a_text_that_shows_something_is_kept_as_it_is(text):
    assert clean_captions((text,), OPTIONS) == ((text,), ())
    assert TOKENIZER.encode([text], 8)[1].any()


def test_every_character_without_a_token_is_blank():
    characters = [chr(code) for code in range(0x3000) if not is_blank(chr(code))]
    is_valid = TOKENIZER.encode(characters, 4)[1]
    assert is_valid.any(axis=1).all()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("\ufeff\u200b a cat\r\n\x00\x01\u2060", "a cat"),
        ("a\xadcat\xad", "a\xadcat"),
        ("cafe\u0301", "caf\xe9"),
        ("a cat".encode("utf-8-sig"), "a cat"),
        ("caf\xe9".encode("utf-16"), "caf\xe9"),
        (b"\xfe\xff" + "caf\xe9".encode("utf-16-be"), "caf\xe9"),
        ("caf\xe9".encode("utf-32"), "caf\xe9"),
    ],
)
def test_ends_are_trimmed_and_byte_order_marks_decide_the_encoding(given, expected):
    assert clean_captions((given,), OPTIONS) == ((expected,), ())


@pytest.mark.parametrize(
    ("caption", "fault"),
    [
        (b"caf\xe9", ("text is not UTF-8", "'utf-8' codec can't decode byte 0xe9 in position 3")),
        ("\ud800", ("text is not UTF-8", "surrogates not allowed")),
        (b"\xff\xfea", ("text is not UTF-8", "truncated data")),
        ("x" * 30_000, ("text too long", "30,000 characters")),
        (None, ("caption is not a text", "a list")),
        (" \u200b", ("empty text", r"' \u200b'")),
        ("version https://git-lfs.github.com/spec/v1\n", ("not fetched from Git LFS", "git lfs")),
    ],
)
def test_a_bad_caption_is_named_and_leaves_the_good_ones(caption, fault):
    (kept, (found,)) = clean_captions(("good", caption), OPTIONS)
    assert kept == ("good",)
    assert found.reason == fault[0]
    assert fault[1] in found.detail
    assert len(found.detail) <= 100
    with pytest.raises(Unfit, match=fault[0]):
        clean_sample(Sample(place="p", captions=(" ", caption)), OPTIONS)


def test_the_first_caption_must_be_long_enough():
    options = CleaningOptions(kind="text", min_caption_characters=3)
    assert clean_captions(("long", "s"), options)[0] == ("long", "s")
    with pytest.raises(Unfit, match=r"text too short.*1 characters"):
        clean_sample(Sample(place="p", captions=("s", "long")), options)
    with pytest.raises(Unfit, match="no text"):
        clean_sample(Sample(place="p"), options)


def test_captions_that_are_left_out_are_counted_and_listed(tmp_path):
    image = jpeg(np.zeros((20, 30, 3), np.uint8))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.jpg").write_bytes(image)
    rows = [["one", "x" * 30_000, "three"], ["four"], ["\u200b", [1]]]
    lines = (json.dumps({"file": "0.jpg", "caption": row}) for row in rows)
    (tmp_path / "in" / "list.jsonl").write_text("\n".join(lines))
    manifest = run(tmp_path / "in", tmp_path / "set", num_shards=1)
    assert (manifest["given"], manifest["kept"]) == (3, 2)
    assert manifest["left_out_captions"] == {"text too long": 1}
    assert manifest["dropped"] == {"caption is not a text": 1}
    captions = {record.captions for record in open_shards(f"{tmp_path / 'set'}/train-*")}
    assert captions == {("one", "three"), ("four",)}
    (line,) = (tmp_path / "set" / "dropped_captions.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "text too long"
    assert json.loads(line)["detail"] == "30,000 characters"
    assert "list.jsonl" in json.loads(line)["place"]


def test_a_set_whose_captions_are_all_good_has_no_list_of_others(tmp_path):
    (tmp_path / "in.txt").write_text("one\ntwo\n")
    manifest = run(tmp_path / "in.txt", tmp_path / "set", kind="text", num_shards=1)
    assert manifest["left_out_captions"] == {}
    assert not (tmp_path / "set" / "dropped_captions.jsonl").exists()


def test_a_labelled_record_keeps_its_good_captions():
    image = jpeg(np.zeros((20, 30, 3), np.uint8))
    options = CleaningOptions(kind="labelled")

    def cleaned(*captions):
        return clean_sample(Sample(place="p", image=image, captions=captions, label="cat"), options)

    assert cleaned("a cat", b"caf\xe9").record.captions == ("a cat",)
    assert cleaned("a cat", b"caf\xe9").left_out[0].reason == "text is not UTF-8"
    assert cleaned().record.captions == ()
    assert cleaned().record.id != cleaned("a cat").record.id
    assert cleaned(" ").left_out == (Fault("empty text", "' '"),)


def test_further_pages_of_a_scan_are_counted(tmp_path):
    pages = [Image.new("1", (200, 100), color) for color in (0, 1, 0)]
    stream = io.BytesIO()
    pages[0].save(stream, "TIFF", compression="group4", save_all=True, append_images=pages[1:])
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "scan.tif").write_bytes(stream.getvalue())
    manifest = run(tmp_path / "given", tmp_path / "set", kind="image", num_shards=1)
    assert (manifest["kept"], manifest["left_out_pages"]) == (1, 2)
