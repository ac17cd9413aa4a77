"""Guards odd and damaged collections: every sample is kept, or dropped with a reason."""

import bz2
import gzip
import io
import json
import lzma
import tarfile

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from prepare_forms import (
    run,
    shard_bytes,
    write_folder,
    write_hdf5,
    write_parquet,
    write_sidecars,
    write_tars,
)

from m3ae_tpu.data.shards import open_shards
from m3ae_tpu.errors import UserError
from m3ae_tpu.prepare import pieces
from m3ae_tpu.prepare.local import prepare_locally
from m3ae_tpu.prepare.options import CleaningOptions, PrepareOptions
from m3ae_tpu.prepare.pieces import find_pieces
from m3ae_tpu.prepare.samples import Sample, row_sample


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize(
    "names",
    [["same", "same", "same"], ["img.0", "img.1", "img.2"], ["x" * 120, "b/é", "c"]],
    ids=["equal keys", "dots", "long names"],
)
def test_no_sample_of_a_tar_hides_another(names, pairs, tmp_path):
    members = [
        (f"{name}{ending}", content)
        for name, (image, caption) in zip(names, pairs, strict=False)
        for ending, content in ((".jpg", image), (".txt", caption.encode()))
    ]
    write_tar(tmp_path / "a.tar", members)
    manifest = run(tmp_path / "a.tar", tmp_path / "set", num_shards=1)
    assert (manifest["given"], manifest["kept"]) == (3, 3)


def test_a_damaged_header_of_a_lone_member_is_counted(pairs, tmp_path):
    write_tar(tmp_path / "a.tar", [(f"{number}.jpg", pairs[number][0]) for number in range(9)])
    data = bytearray((tmp_path / "a.tar").read_bytes())
    with tarfile.open(tmp_path / "a.tar") as archive:
        data[archive.getmember("4.jpg").offset + 150] ^= 1
    (tmp_path / "a.tar").write_bytes(bytes(data))
    manifest = run(tmp_path / "a.tar", tmp_path / "set", kind="image", num_shards=1)
    assert (manifest["given"], manifest["kept"], manifest["dropped"]) == (
        9,
        8,
        {"damaged archive header": 1},
    )


def test_lists_lose_no_row_uncounted(pairs, tmp_path):
    (tmp_path / "i.jpg").write_bytes(pairs[0][0])
    rows = [
        {"file": "i.jpg", "caption": ["one", None, 2]},
        {"file": "i.jpg", "caption": None},
        {"file": "no.jpg", "caption": "x"},
        {"file": "a\0b.jpg", "caption": "x"},
        {"file": "i.jpg", "caption": "x" * 300_000},
        [1],
    ]
    lines = [*map(json.dumps, rows), '{"file": "i.jpg", "caption": "\\ud800"}', "[" * 100_000]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    manifest = run(tmp_path, tmp_path / "set", num_shards=1)
    assert (manifest["given"], manifest["kept"]) == (8, 1)
    assert manifest["dropped"] == {
        "not JSON": 1,
        "not a JSON object": 1,
        "no text": 1,
        "text is not UTF-8": 1,
        "text too long": 1,
        "unreadable image file": 2,
    }


def test_columns_with_quotes_commas_and_other_encodings(pairs, tmp_path):
    (tmp_path / "i.jpg").write_bytes(pairs[0][0])
    lists = {
        "a.tsv": 'file\tcaption\ni.jpg\t"open quote\n',
        "b.csv": 'file,caption\ni.jpg,good\ni.jpg,a dog, running\ni.jpg,"open\ni.jpg,not lost\n',
        "c.csv": 'File;Caption\ni.jpg;caf\xe9\ni.jpg;"two\nlines"\n',
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text, encoding="latin-1")
    manifest = run(tmp_path, tmp_path / "set", num_shards=1)
    texts = {record.captions[0] for record in open_shards(f"{tmp_path / 'set'}/train-*")}
    assert texts == {'"open quote', "good", "not lost", "two\nlines"}
    assert manifest["dropped"] == {
        "row with more fields than the header": 1,
        "text is not UTF-8": 1,
        "unreadable row": 1,
    }


def test_files_are_split_into_pieces_that_hold_every_row_once(
    pairs, prepared, tmp_path, monkeypatch
):
    monkeypatch.setattr(pieces, "IMAGES_PER_PIECE", 15)
    write_parquet(tmp_path / "parquet", pairs)
    table = pyarrow.parquet.read_table(tmp_path / "parquet" / "0000.parquet")
    pyarrow.parquet.write_table(table, tmp_path / "parquet" / "0000.parquet", row_group_size=4)
    write_folder(tmp_path / "csv", pairs)
    write_hdf5(tmp_path / "hdf5", pairs)
    write_sidecars(tmp_path / "sidecars", pairs)
    for form, count in {"parquet": 4, "csv": 5, "hdf5": 2, "sidecars": 4}.items():
        assert len(find_pieces([str(tmp_path / form)], "paired").pieces) == count
        run(tmp_path / form, tmp_path / f"{form}-set")
        assert shard_bytes(tmp_path / f"{form}-set") == shard_bytes(prepared / "set")


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_files_of_every_form(compress, pairs, tmp_path):
    write_tars(tmp_path / "tar", pairs[:8])
    write_parquet(tmp_path / "parquet", pairs[8:12])
    write_hdf5(tmp_path / "hdf5", pairs[12:16])
    for path in (
        *tmp_path.glob("tar/*.tar"),
        *tmp_path.glob("hdf5/*"),
        *tmp_path.glob("parquet/*"),
    ):
        path.write_bytes(compress(path.read_bytes()))
    whole = (tmp_path / "tar" / "00000.tar").read_bytes()
    (tmp_path / "tar" / "00002.tar").write_bytes(whole[: len(whole) // 2])
    found = find_pieces([str(tmp_path / form) for form in ("tar", "parquet", "hdf5")], "paired")
    manifest = prepare_locally(
        found, tmp_path / "set", PrepareOptions(cleaning=CleaningOptions(), num_shards=1)
    )
    # The cut archive repeats some samples of the whole one.
    assert manifest["kept"] == 16 + manifest["duplicates"]
    # Half of one bzip2 block gives nothing at all.
    assert manifest["dropped"] in ({"archive cut short": 1}, {"unreadable file": 1})


def test_sets_of_an_hdf5_file_are_chosen_by_name(pairs, tmp_path):
    path = tmp_path / "imagenet.hdf5"
    with h5py.File(path, "w") as file:
        for name in ("train", "val"):
            images = file.create_dataset(f"{name}_jpg", (4,), dtype=h5py.vlen_dtype(np.uint8))
            for number in range(4):
                images[number] = np.frombuffer(pairs[number][0], np.uint8)
            file[f"{name}_labels"] = np.arange(4)
    with pytest.raises(UserError, match=r"imagenet.hdf5#train, .*#val"):
        run(path, tmp_path / "set", kind="labelled")
    run(f"{path}#val", tmp_path / "set", kind="labelled", num_shards=1)
    assert {record.label_name for record in open_shards(f"{tmp_path / 'set'}/train-*")} == set(
        "0123"
    )


def test_everything_in_a_folder_of_archives_is_accounted_for(pairs, tmp_path):
    write_tars(tmp_path / "given", pairs[:4])
    (tmp_path / "given" / "empty.tar").write_bytes(b"")
    (tmp_path / "given" / "error.tar").write_bytes(b"<html>not found</html>")
    (tmp_path / "given" / "cover.jpg").write_bytes(pairs[5][0])
    manifest = run(tmp_path / "given", tmp_path / "set", num_shards=1)
    assert manifest["kept"] == 4
    assert manifest["dropped"] == {"HTML is not read": 1, "no text": 1, "unknown file format": 1}
    assert manifest["inputs"]["tar"]["files"] == 2


def test_odd_sidecars_belong_to_their_image(pairs, tmp_path):
    for number, text in enumerate([b"", b"caf\xe9", "x".encode("utf-16"), b"good"]):
        (tmp_path / f"{number}.jpg").write_bytes(pairs[number][0])
        (tmp_path / f"{number}.txt").write_bytes(text)
    manifest = run(tmp_path, tmp_path / "set", num_shards=1)
    assert (manifest["given"], manifest["kept"]) == (4, 2)
    assert manifest["dropped"] == {"empty text": 1, "text is not UTF-8": 1}


def test_stores_and_packages_that_are_missing_are_named(tmp_path):
    with pytest.raises(UserError, match="needs s3fs"):
        find_pieces(["s3://bucket/set"], "paired")


@pytest.mark.parametrize("start", [b"PAR1PAR1", b"\x89HDF\r\n\x1a\n\0\0\0\0"])
def test_a_damaged_file_that_starts_like_a_container_hides_no_other(start, pairs, tmp_path):
    texts, images = tmp_path / "texts", tmp_path / "images"
    for folder in (texts, images):
        folder.mkdir()
        (folder / "a.dat").write_bytes(start + bytes(40))
    (texts / "b.txt").write_text("one\ntwo\n")
    manifest = run(texts, tmp_path / "set", kind="text", num_shards=1)
    assert (manifest["given"], manifest["kept"]) == (3, 2)
    assert manifest["dropped"] == {"unreadable file": 1}
    (images / "b.jpg").write_bytes(pairs[0][0])
    (images / "c.jpg").write_bytes(b"<html>Not found</html>")
    manifest = run(images, tmp_path / "other", kind="image", num_shards=1)
    assert (manifest["given"], manifest["kept"]) == (3, 1)
    assert manifest["dropped"] == {"HTML is not read": 1, "unreadable file": 1}


def test_a_list_with_a_damaged_header_stops_nothing(pairs, tmp_path):
    write_folder(tmp_path / "given", pairs[:3])
    (tmp_path / "given" / "more.csv").write_bytes(b"fi\rle,caption\nx.jpg,a\n")
    manifest = run(tmp_path / "given", tmp_path / "set", num_shards=1)
    assert (manifest["given"], manifest["kept"]) == (3, 3)


def captions(folder):
    return {record.captions for record in open_shards(f"{folder}/train-*")}


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ('\n{"text": "one"}\n{"text": "two"}\n', {"one", "two"}),
        ("\n \ntext\none\n", {"one"}),
        ("\ufeff\ntext,id\none,1\n", {"one"}),
        (
            'text\tid\n"Merry" and "Happy"\t1\n"they said ""hi"""\t2\n',
            {'"Merry" and "Happy"', 'they said "hi"'},
        ),
        (
            '{"text": ["one", "two"]}\n{"text": 3}\n{"text": {"en": "no"}}\n{"text": [["no"]]}\n',
            {"one", "3"},
        ),
        ('{"caption": "", "text": "one"}\n', {"one"}),
    ],
)
def test_tables_are_read_as_they_were_meant(content, texts, tmp_path):
    (tmp_path / "given").write_text(content)
    manifest = run(tmp_path / "given", tmp_path / "set", kind="text", num_shards=1)
    assert {found[0] for found in captions(tmp_path / "set")} == texts
    assert manifest["dropped"] in ({}, {"caption is not a text": 2})


def test_members_of_a_tar_are_recognised_by_name_and_by_content(pairs, tmp_path):
    images = [image for image, _ in pairs]
    depth = io.BytesIO()
    Image.new("L", (64, 64)).save(depth, "PNG")
    write_tar(
        tmp_path / "a.tar",
        [
            ("map.depth.png", depth.getvalue()),
            ("map.jpg", images[0]),
            ("map.txt", b"beside a map"),
            ("dots.v2.jpg", images[3]),
            ("dots.v2.txt", b"\xef\xbb\xbfwith a mark"),
            ("empty.jpg", images[6]),
            ("empty.txt", b" \n"),
            ("empty.json", b'{"caption": "from the JSON"}'),
        ],
    )
    run(tmp_path / "a.tar", tmp_path / "set", num_shards=1)
    found = {record.captions: record.image for record in open_shards(f"{tmp_path / 'set'}/train-*")}
    assert found == {
        ("beside a map",): images[0],
        ("with a mark",): images[3],
        ("from the JSON",): images[6],
    }


def test_mixed_folders_are_read_and_ignored_files_are_counted(pairs, tmp_path):
    given = tmp_path / "given"
    write_tars(given, pairs[:4])
    write_parquet(given / "rows", pairs[4:7])
    write_folder(given / "listed", pairs[7:9])
    write_sidecars(given / "loose", pairs[9:10])
    manifest = run(given, tmp_path / "set", num_shards=1)
    assert (manifest["kept"], manifest["dropped"]) == (9, {})
    # Statistics and addresses beside the tars; the loose image and its text, which no list names.
    assert manifest["inputs"]["passed over"]["files"] == 6
    write_parquet(tmp_path / "texts", pairs[:3])
    (tmp_path / "texts" / "more.jsonl").write_text('{"text": "one text"}\n')
    manifest = run(tmp_path / "texts", tmp_path / "set of texts", kind="text", num_shards=1)
    assert (manifest["kept"], manifest["dropped"]) == (4, {})


def test_a_log_beside_images_is_not_a_list_of_them(pairs, tmp_path):
    write_sidecars(tmp_path / "given", pairs[:2])
    (tmp_path / "given" / "log.csv").write_text("path,size\n0000.png,12\n")
    (tmp_path / "given" / "0000.txt").rename(tmp_path / "given" / "0000.TXT")
    manifest = run(tmp_path / "given", tmp_path / "set", num_shards=1)
    assert (manifest["given"], manifest["kept"]) == (2, 2)
    assert manifest["inputs"]["passed over"]["files"] == 1


def test_parquet_may_name_files_beside_it_but_not_web_pages(pairs, tmp_path):
    write_sidecars(tmp_path / "given", pairs[:1])
    path = tmp_path / "given" / "a.parquet"
    (tmp_path / "given" / "0000.png").rename(tmp_path / "given" / "image.data")
    for image, expected in (("image.data", 1), ("https://example.org/a.jpg", 0)):
        pyarrow.parquet.write_table(pyarrow.table({"image": [image], "text": ["a text"]}), path)
        if expected:
            assert run(path, tmp_path / "set", num_shards=1)["kept"] == expected
        else:
            with pytest.raises(UserError, match="addresses of images, not images"):
                run(path, tmp_path / "other", num_shards=1)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (b"bytes", b"bytes"),
        ({"bytes": b"bytes", "path": "other.jpg"}, b"bytes"),
        ({"bytes": None, "path": "a.jpg"}, b"from a file"),
        ("a.jpg", b"from a file"),
        ("", None),
        (None, None),
        (7, None),
    ],
)
def test_a_row_gives_its_image_in_every_form(image, expected, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"from a file")
    row = {"image": image, "text": ["one", None, 2], "label": float("nan")}
    sample = row_sample(row, "row 1", f"{tmp_path}/list")
    assert sample == Sample(place="row 1", image=expected, captions=(b"one", b"2"))


def test_a_row_whose_image_cannot_be_read_has_the_reason(tmp_path):
    for image, fault in {
        "https://example.org/a.jpg": "address instead of an image file: https://example.org/a.jpg",
        "missing.jpg": "unreadable image file: No such file or directory: 'missing.jpg'",
    }.items():
        sample = row_sample({"image": image}, "row 1", f"{tmp_path}/list")
        assert str(sample.fault).startswith(fault)
