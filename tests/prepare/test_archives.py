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

from m3ae_tpu.data.shards import open_shards
from m3ae_tpu.errors import UserError
from m3ae_tpu.prepare.readers import tar_members
from m3ae_tpu.prepare.readers.archives import read_tar

JPEG = b"\xff\xd8\xff"
TEXTS = ("txt", "text", "caption", "cls", "json")


def content_of(name):
    """A member's content, which says whose it is."""
    is_text = name.lower().endswith(TEXTS)
    return (b"" if is_text else JPEG) + name.encode("utf-8", "surrogateescape")


def header(name, type=tarfile.REGTYPE, link="", size=0):
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = type, link, size
    return member


def pack(path, *members, format=tarfile.GNU_FORMAT):
    """Writes an archive of names, of names with contents, and of headers; returns its path."""
    with tarfile.open(path, "w", format=format) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                name, content = (member, content_of(member)) if isinstance(member, str) else member
                archive.addfile(header(name, size=len(content)), io.BytesIO(content))
    return str(path)


def text_of(content):
    return content and content.removeprefix(JPEG).decode("utf-8", "surrogateescape")


def read(url):
    """Image and caption of each sample, or the reason why there is none."""
    return [
        sample.fault.reason
        if sample.fault
        else (text_of(sample.image), next(map(text_of, sample.captions), None))
        for sample in read_tar(str(url))
    ]


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
        with fsspec.open(url, "wb") as file:
            file.write((tmp_path / "a.tar").read_bytes())
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


def test_links_stand_for_the_file_that_they_name(tmp_path):
    url = pack(
        tmp_path / "a.tar",
        "data/a.jpg",
        "data/a.txt",
        header("b.jpg", tarfile.LNKTYPE, "./data/a.jpg"),
        "b.txt",
        header("links/c.jpg", tarfile.SYMTYPE, "../b.jpg"),
        "links/c.txt",
        header("d.jpg", tarfile.SYMTYPE, "late.jpg"),
        header("late.jpg", tarfile.SYMTYPE, "e.jpg"),
        "e.jpg",
        header("out.jpg", tarfile.SYMTYPE, "/etc/passwd"),
        header("loop.jpg", tarfile.SYMTYPE, "loop.jpg"),
        header("missing.jpg", tarfile.LNKTYPE, "nowhere.jpg"),
    )
    assert read(url) == [
        *(("data/a.jpg", "data/a.txt"), ("data/a.jpg", "b.txt"), ("data/a.jpg", "links/c.txt")),
        *(("e.jpg", None), ("e.jpg", None), ("e.jpg", None)),
        *["archive member is a link"] * 3,
    ]
    details = [sample.fault.detail for sample in read_tar(url) if sample.fault]
    assert details[0] == "out.jpg to /etc/passwd, which is not in the archive"


def test_what_is_not_a_file_is_passed_over(tmp_path):
    types = (tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, b"V", b"D")
    url = pack(tmp_path / "a.tar", *(header(f"no{type}.jpg", type) for type in types), "a.jpg")
    assert read(url) == [("a.jpg", None)]
    assert read(pack(tmp_path / "b.tar", header("folder", tarfile.DIRTYPE))) == [
        "archive without files"
    ]


def sparse_header(content, stretches, extended):
    """GNU's header of a sparse file: the first four stretches in it, the others behind."""
    numbers = [f"{number:011o}\0".encode() for stretch in stretches for number in stretch]
    block = bytearray(
        header("s.jpg", b"S", size=sum(n for _, n in stretches)).tobuf(tarfile.GNU_FORMAT)
    )
    block[386 : 386 + 96] = b"".join(numbers[:8]).ljust(96, b"\0")
    block[482] = extended
    block[483:495] = f"{len(content):011o}\0".encode()
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    more = b"".join(numbers[8:]).ljust(504, b"\0") + bytes(8)
    return bytes(block) + (more if extended else b"")


def sparse_notes(version, content, stretches):
    """Pax notes of a sparse file, and the map that version 1.0 writes before the content."""
    numbers = [str(number) for stretch in stretches for number in stretch]
    size = str(len(content))
    if version == "1.0":
        table = "\n".join([str(len(stretches)), *numbers, ""]).encode()
        table += bytes(-len(table) % 512)
        notes = {"major": "1", "minor": "0", "name": "s.jpg", "realsize": size}
        return notes, table
    return {"map": ",".join(numbers), "name": "s.jpg", "size": size}, b""


@pytest.mark.parametrize("version", ["GNU", "GNU extended", "0.1", "1.0"])
def test_sparse_files_get_their_zeros_back(version, tmp_path):
    pieces = 7 if version == "GNU extended" else 3
    content = b"".join(JPEG + bytes([n]) * 700 + bytes(1024) for n in range(1, pieces + 1))
    stretches = [(n * 1727, 703) for n in range(pieces)]
    stored = b"".join(content[start : start + count] for start, count in stretches)
    if version.startswith("GNU"):
        data = sparse_header(content, stretches, version == "GNU extended") + stored
    else:
        notes, table = sparse_notes(version, content, stretches)
        member = header("GNUSparseFile.0/s.jpg", size=len(table) + len(stored))
        member.pax_headers = {f"GNU.sparse.{name}": value for name, value in notes.items()}
        data = member.tobuf(tarfile.PAX_FORMAT) + table + stored
    after = (tmp_path / "after.tar", "after.jpg")
    data += bytes(-len(data) % 512) + Path(pack(*after)).read_bytes()
    (tmp_path / "a.tar").write_bytes(data)
    first, second = read_tar(str(tmp_path / "a.tar"))
    assert (first.fault, first.image) == (None, content)
    assert second.image == content_of("after.jpg")


def test_notes_before_a_header_give_its_name_and_size(tmp_path):
    content = JPEG + bytes(1000)
    member = header("x", size=0)
    member.pax_headers = {"path": "caf\u00e9.jpg", "size": str(len(content)), "comment": "a=b\nc"}
    data = member.tobuf(tarfile.PAX_FORMAT) + content
    comment = tarfile.TarInfo.create_pax_global_header({"comment": "0" * 40, "path": "no.jpg"})
    data = comment + data + bytes(-len(data) % 512)
    (tmp_path / "a.tar").write_bytes(data + Path(pack(tmp_path / "b.tar", "a.txt")).read_bytes())
    first, second = read_tar(str(tmp_path / "a.tar"))
    assert (first.place, first.image) == (f"{tmp_path}/a.tar, caf\u00e9", content)
    assert second.captions == (b"a.txt",)


def test_times_in_the_headers_of_incremental_dumps_are_not_folders(tmp_path):
    blocks = []
    for number, name in enumerate(("a.jpg", "a.txt")):
        content = content_of(name)
        block = bytearray(header(name, size=len(content)).tobuf(tarfile.GNU_FORMAT))
        block[345:357] = b"1473421377%d\0" % number
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        blocks.append(bytes(block) + content.ljust(512, b"\0"))
    (tmp_path / "a.tar").write_bytes(b"".join(blocks) + bytes(1024))
    assert read(tmp_path / "a.tar") == [("a.jpg", "a.txt")]


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
    assert next(map(bytes.decode, sample.captions), None) == caption
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
