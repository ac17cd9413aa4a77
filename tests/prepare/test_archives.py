"""Guards tars: no image gets another image's caption, and no member is lost uncounted."""

import gzip
import io
import json
import os
import random
import tarfile
from pathlib import Path

import fsspec
import pytest
from prepare_forms import run
from tar_files import JPEG, captions, content_of, header, pack, read

from m3ae_tpu.data.shards import open_shards
from m3ae_tpu.errors import UserError
from m3ae_tpu.prepare.readers import tar_members
from m3ae_tpu.prepare.readers.archives import read_tar

DATE = "2024-01-31 10.31"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        # Versions, numbers, times and sentences are parts of a name.
        (["v1.0.jpg", "v1.1.txt"], [("v1.0.jpg", None), (None, "v1.1.txt")]),
        (["v1.0.jpg", "v1.1.png"], [("v1.0.jpg", None), ("v1.1.png", None)]),
        (["v1.0.jpg", "v1.1.jpg", "v1.1.txt"], [("v1.0.jpg", None), ("v1.1.jpg", "v1.1.txt")]),
        (["v1.0", "v1.0.txt", "v1.1"], [("v1.0", "v1.0.txt"), ("v1.1", None)]),
        (
            [f"{DATE}.05.png", f"{DATE}.06.txt"],
            [(f"{DATE}.05.png", None), (None, f"{DATE}.06.txt")],
        ),
        (["a.jpg", "a.2.jpg", "a.txt"], [("a.jpg", "a.txt"), ("a.2.jpg", None)]),
        (["St. A.jpg", "St.txt"], [("St. A.jpg", None), (None, "St.txt")]),
        (["a.new.jpg", "a.new.txt", "a.jpg"], [("a.new.jpg", "a.new.txt"), ("a.jpg", None)]),
        (["a.left.jpg", "a.right.jpg"], [("a.left.jpg", None), ("a.right.jpg", None)]),
        (["a..jpg", "a.txt"], [("a..jpg", "a.txt")]),
        # Dots in folders are not.
        (["v1.0/a.jpg", "v1.1/a.txt"], [("v1.0/a.jpg", None), (None, "v1.1/a.txt")]),
        (["v1.0\\a.jpg", "v1.0\\a.txt"], [("v1.0\\a.jpg", "v1.0\\a.txt")]),
        (["images/0.jpg", "texts/0.txt"], [("images/0.jpg", None), (None, "texts/0.txt")]),
        # Further members of a sample.
        (["a.depth.png", "a.jpg", "a.txt"], [("a.jpg", "a.txt")]),
        (["a.input.jpg", "a.txt"], [("a.input.jpg", "a.txt")]),
        (["a.input.jpg", "a.target.jpg", "a.txt"], ["several images in one sample"]),
        (["a.jpg", "a.caption.txt"], [("a.jpg", "a.caption.txt")]),
        (["a.jpg", "a.en.txt", "a.de.txt"], [("a.jpg", None)]),
        (["a.depth.png", "a.tif", "a.txt"], [("a.tif", "a.txt")]),
        (["a.png", "a.jpg", "a.txt"], [("a.jpg", "a.txt")]),
        (["a.data", "a.txt"], [("a.data", "a.txt")]),
        (["a", "a.txt"], [("a", "a.txt")]),
        # An ending in two spellings: a text could belong to either image.
        (["a.JPG", "a.jpg", "a.txt"], [("a.JPG", None), ("a.jpg", None), (None, "a.txt")]),
        (["a.jpg", "a.jpeg"], [("a.jpg", None), ("a.jpeg", None)]),
        (["a.JPG", "a.TXT"], [("a.JPG", "a.TXT")]),
        # Names that other systems write.
        (["./0.jpg", "0.txt"], [("./0.jpg", "0.txt")]),
        (["./._0.jpg", "0.jpg", "__MACOSX/0.txt", ".DS_Store"], [("0.jpg", None)]),
        (["e\u0301.jpg", "\u00e9.txt"], [("e\u0301.jpg", "\u00e9.txt")]),
        (["\udce9.jpg", "\udce8.txt"], [("\udce9.jpg", None), (None, "\udce8.txt")]),
        # Any order.
        (["a.jpg", "b.jpg", "b.txt", "a.txt"], [("a.jpg", "a.txt"), ("b.jpg", "b.txt")]),
        (["a.txt", "b.txt", "a.jpg", "b.jpg"], [("a.jpg", "a.txt"), ("b.jpg", "b.txt")]),
        # Names that repeat.
        (["a.jpg", "a.txt", "a.jpg", "a.txt"], [("a.jpg", "a.txt")] * 2),
        (["a.jpg", "b.jpg", "a.txt", "b.txt"] * 2, [("a.jpg", "a.txt"), ("b.jpg", "b.txt")] * 2),
        (
            ["a.jpg", "a.jpg", "b.jpg", "a.txt"],
            [("a.jpg", None), ("a.jpg", None), (None, "a.txt"), ("b.jpg", None)],
        ),
    ],
)
def test_names_decide_which_members_are_a_sample(names, expected, tmp_path):
    found = read(pack(tmp_path / "a.tar", *names))
    assert sorted(map(str, found)) == sorted(map(str, expected))


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("where", ["local", "compressed", "remote"])
def test_members_may_stand_in_any_order(format, where, tmp_path):
    endings = ("jpg", "txt", "json", "depth.png")
    folders = ("", "a/", "f" * 60 + "/" + "g" * 60 + "/")
    names = [f"{folder}{n}.{ending}" for folder in folders for n in range(5) for ending in endings]
    random.Random(0).shuffle(names)
    url = pack(tmp_path / "a.tar", *names, format=format)
    if where == "compressed":
        (tmp_path / "a.tar").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    if where == "remote":
        url = "memory://archives/a.tar"
        fsspec.filesystem("memory").pipe(url, (tmp_path / "a.tar").read_bytes())
    expected = {(f"{f}{n}.jpg", f"{f}{n}.txt") for f in folders for n in range(5)}
    found = read(url)
    assert (set(found), len(found)) == (expected, len(expected))


def test_archives_of_images_and_of_texts_may_be_appended_to_each_other(tmp_path):
    pack(tmp_path / "images.tar", "a.jpg", "b.jpg")
    pack(tmp_path / "texts.tar", "a.txt", "b.txt")
    both = [(tmp_path / f"{name}.tar").read_bytes() for name in ("images", "texts")]
    (tmp_path / "a.tar").write_bytes(both[0] + both[1])
    assert read(tmp_path / "a.tar") == [("a.jpg", "a.txt"), ("b.jpg", "b.txt")]
    # The same names again, of other examples: nothing is paired across archives.
    (tmp_path / "a.tar").write_bytes(both[0] + both[0] + both[1])
    assert set(read(tmp_path / "a.tar")) == {
        *(("a.jpg", None), ("b.jpg", None), (None, "a.txt"), (None, "b.txt"))
    }


@pytest.mark.parametrize(
    ("content", "caption"),
    [
        (b'{"caption": "one"}', "one"),
        (b'\xef\xbb\xbf{"TEXT": "one", "url": "x"}', "one"),
        ('{"caption": "one"}'.encode("utf-16"), "one"),
        (b'{"captions": ["one", "two"]}', "one"),
        (b'["one", "two"]', "one"),
        (b'"one"', "one"),
        (b'{"caption": ', None),
        (b"[" * 100_000, None),
        (b"7", None),
    ],
)
def test_captions_stand_in_json_of_every_form(content, caption, tmp_path):
    (sample,) = read_tar(pack(tmp_path / "a.tar", "a.jpg", ("a.json", content)))
    assert next(iter(captions(sample)), None) == caption
    assert ("JSON" in sample.found) == (caption is None)


@pytest.mark.parametrize(
    ("members", "label"),
    [
        (["cat/0.jpg"], "cat"),
        (["x/cat\\0.jpg"], "cat"),
        (["0.jpg"], ""),
        (["cat/0.jpg", ("cat/0.cls", b"3\n")], "3"),
        (["cat/0.jpg", ("cat/0.json", b'{"label": 3}')], "3"),
        (["cat/0.jpg", "1.jpg", ("1.cls", b"3")], ""),
    ],
)
def test_the_class_is_a_member_or_a_value_or_else_the_folder(members, label, tmp_path):
    sample = next(read_tar(pack(tmp_path / "a.tar", *members)))
    assert sample.label == label


def test_every_drop_names_members_and_particulars(pairs, tmp_path):
    url = pack(
        tmp_path / "a.tar",
        ("good.jpg", pairs[0][0]),
        "good.txt",
        ("a.jpg", pairs[1][0]),
        ("a.json", b"{"),
        ("b/c.txt", b"a text"),
        ("t.tar", tarfile.TarInfo("in").tobuf()),
        ("x.v.jpg", pairs[2][0]),
        ("x.w.jpg", pairs[3][0]),
        "x.txt",
    )
    manifest = run(url, tmp_path / "set", num_shards=1)
    text = (tmp_path / "set" / "dropped.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert manifest["kept"] == 1
    assert len(open_shards(f"{tmp_path}/set/train-*")) == 1
    assert {line["place"]: (line["reason"], line["detail"]) for line in lines} == {
        f"{url}, a": (
            "no text",
            "found a.jpg, a.json; its JSON is damaged: Expecting property name enclosed in double "
            "quotes: line 1 column 2 (char 1)",
        ),
        f"{url}, b/c": ("no image", "found b/c.txt"),
        f"{url}, t": ("archive in an archive", "t.tar: unpack it first"),
        f"{url}, x": ("several images in one sample", "x.v.jpg, x.w.jpg"),
    }


def test_a_member_that_is_not_needed_drops_no_sample(tmp_path):
    link = header("a.depth.png", tarfile.SYMTYPE, "/mnt/depth.png")
    assert read(pack(tmp_path / "a.tar", "a.jpg", "a.txt", link)) == [("a.jpg", "a.txt")]


def test_a_damaged_image_is_not_replaced_by_its_depth_map(tmp_path):
    (sample,) = read_tar(pack(tmp_path / "a.tar", ("a.jpg", b"<html>"), "a.depth.png", "a.txt"))
    assert sample.image == b"<html>"


def test_a_full_temporary_folder_ends_with_one_message(tmp_path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, chunk):
            raise OSError(28, os.strerror(28))

    path = tmp_path / "a.tar"
    pack(path, "a.jpg")
    path.write_bytes(gzip.compress(path.read_bytes()))
    monkeypatch.setattr(tar_members.tempfile, "TemporaryFile", Full)
    with pytest.raises(UserError, match=r"a.tar does not fit .*No space left.* TMPDIR="):
        read(path)


def break_headers(path, *numbers):
    """Damages the headers of some members, by their numbers in the archive."""
    with tarfile.open(path) as archive:
        offsets = [archive.getmembers()[number].offset for number in numbers]
    data = bytearray(Path(path).read_bytes())
    for offset in offsets:
        data[offset + 150] ^= 1
    Path(path).write_bytes(data)
    return path


def test_a_damaged_header_costs_one_sample_wherever_the_members_stand(tmp_path):
    names = [f"{number}.{ending}" for ending in ("jpg", "txt") for number in range(5)]
    found = read(break_headers(pack(tmp_path / "a.tar", *names), 2))
    assert len(found) == 5
    assert (None, "2.txt") in found


def test_a_text_of_a_repeated_name_stays_with_its_image(tmp_path):
    members = [(f"same.{e}", content_of(f"{n}.{e}")) for n in range(4) for e in ("jpg", "txt")]
    whole = [(f"{n}.jpg", f"{n}.txt") for n in range(4)]
    found = read(break_headers(pack(tmp_path / "a.tar", *members), 1, 4))
    assert found == [("0.jpg", None), whole[1], (None, "2.txt"), whole[3]]
    found = read(break_headers(pack(tmp_path / "a.tar", *members), 3, 4))
    assert found == [whole[0], ("1.jpg", None), (None, "2.txt"), whole[3]]
    # The end of one archive lacks a text, the start of the next an image.
    data = [
        Path(pack(tmp_path / "b.tar", *members[start:stop])).read_bytes()
        for start, stop in ((0, 3), (3, 8))
    ]
    (tmp_path / "c.tar").write_bytes(b"".join(data))
    found = read(tmp_path / "c.tar")
    assert found[:3] == [whole[0], ("1.jpg", None), (None, "1.txt")]


def test_a_name_whose_note_is_damaged_is_not_cut_to_another_name(tmp_path):
    names = [f"{'n' * 100}{number}.{ending}" for number in (1, 2) for ending in ("jpg", "txt")]
    path = pack(tmp_path / "a.tar", *names)
    data = bytearray(Path(path).read_bytes())
    data[data.index(b"././@LongLink", 3000) + 150] ^= 1
    Path(path).write_bytes(data)
    keys = {sample.place.removeprefix(f"{path}, ") for sample in read_tar(path)}
    assert keys == {f"{'n' * 100}1", f"{'n' * 100}2"}


def test_all_that_can_be_decompressed_of_a_cut_archive_is_read(tmp_path):
    numbers = random.Random(0)
    url = pack(
        tmp_path / "a.tar", *((f"{n}.jpg", JPEG + numbers.randbytes(997)) for n in range(40))
    )
    data = gzip.compress(Path(url).read_bytes())
    Path(url).write_bytes(data[: len(data) * 3 // 4])
    images = [sample for sample in read_tar(url) if sample.image]
    assert len(images) >= 28


NAMES = [f"{'n' * (90 + 30 * (n % 2))}{n}.{ending}" for n in range(4) for ending in ("jpg", "txt")]


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize(
    "names", [NAMES, NAMES[::2] + NAMES[1::2], ["same.jpg", "same.txt"] * 4], ids=len
)
def test_no_damage_pairs_an_image_with_another_caption(names, format, tmp_path):
    path, numbers = tmp_path / "a.tar", random.Random(0)
    keys = [n % 4 if names[1].endswith("jpg") else n // 2 for n in range(8)]
    images, texts = [JPEG + b"%d" % n * 700 for n in range(4)], [b"%d" % n * 9 for n in range(4)]
    members = [
        (images if name.endswith("jpg") else texts)[key]
        for name, key in zip(names, keys, strict=True)
    ]
    whole = Path(pack(path, *zip(names, members, strict=True), format=format)).read_bytes()
    size = len(whole.rstrip(b"\0"))
    for number in range(100):
        data, start = bytearray(whole), numbers.randrange(size)
        match number % 4:
            case 0:
                data[start] ^= 1 << numbers.randrange(8)
            case 1:
                del data[start:]
            case 2:
                data[start : start + 512] = bytes(512)
            case 3:
                del data[start : start + numbers.randrange(600)]
        path.write_bytes(data)
        samples = list(read_tar(str(path)))
        assert samples
        for sample in samples:
            if sample.image in images and sample.captions and sample.captions[0] in texts:
                assert images.index(sample.image) == texts.index(sample.captions[0]), number


def test_an_archive_that_cannot_be_opened_is_named(tmp_path):
    (sample,) = read_tar(str(tmp_path / "removed.tar"))
    assert sample.place == str(tmp_path / "removed.tar")
    assert str(sample.fault).startswith("unreadable file: [Errno 2]")
