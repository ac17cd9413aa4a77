"""Guards the preparation of collections: every form gives the same records, nothing is lost, nothing is random."""

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import tarfile

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from m3ae_tpu.config import ConfigError
from m3ae_tpu.data.images import decode_image
from m3ae_tpu.data.prepare import cleaning, parts
from m3ae_tpu.data.prepare.cleaning import CleaningOptions
from m3ae_tpu.data.prepare.convert import PrepareOptions
from m3ae_tpu.data.prepare.parts import find_parts
from m3ae_tpu.data.prepare.prepare import prepare
from m3ae_tpu.data.records import open_shards

NUM_PAIRS = 60


def jpeg(pixels, **options):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=90, **options)
    return stream.getvalue()


@pytest.fixture(scope="module")
def pairs():
    """Images and captions of the starter set: every third as JPEG, the rest as the WebP that they are."""
    records = open_shards("starter/heldout-*")
    found = []
    for index in range(NUM_PAIRS):
        image = records[index].image
        found.append((jpeg(decode_image(image)) if index % 3 == 0 else image, records[index].captions[0]))
    return found


def write_folder(folder, pairs):
    (folder / "pictures").mkdir(parents=True)
    with (folder / "list.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "caption"])
        for number, (image, caption) in enumerate(pairs):
            (folder / "pictures" / f"{number}.jpg").write_bytes(image)
            rows.writerow([f"pictures/{number}.jpg", caption])


def write_sidecars(folder, pairs):
    folder.mkdir(parents=True)
    for number, (image, caption) in enumerate(pairs):
        (folder / f"{number:04d}.png").write_bytes(image)
        (folder / f"{number:04d}.txt").write_text(caption)


def write_tars(folder, pairs):
    folder.mkdir(parents=True)
    half = len(pairs) // 2
    for shard, part in enumerate((pairs[:half], pairs[half:])):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as archive:
            for number, (image, caption) in enumerate(part):
                texts = {"txt": caption.encode(), "json": json.dumps({"caption": "not this"}).encode()}
                for ending, content in {"jpg": image, **texts}.items():
                    member = tarfile.TarInfo(f"{number:06d}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        # What img2dataset leaves beside each archive.
        (folder / f"{shard:05d}_stats.json").write_text("{}")
        pyarrow.parquet.write_table(pyarrow.table({"url": ["http://x"]}), folder / f"{shard:05d}.parquet")


def write_parquet(folder, pairs):
    folder.mkdir(parents=True)
    table = pyarrow.table(
        {"image": [{"bytes": i, "path": None} for i, _ in pairs], "text": [c for _, c in pairs]}
    )
    pyarrow.parquet.write_table(table, folder / "0000.parquet")


def write_hdf5(folder, pairs):
    folder.mkdir(parents=True)
    with h5py.File(folder / "set.hdf5", "w") as file:
        for name, column in (("jpg", [i for i, _ in pairs]), ("caption", [c.encode() for _, c in pairs])):
            array = file.create_dataset(name, (len(pairs),), dtype=h5py.vlen_dtype(np.uint8))
            for number, value in enumerate(column):
                array[number] = np.frombuffer(value, np.uint8)


FORMS = {
    "csv": write_folder,
    "sidecars": write_sidecars,
    "tar": write_tars,
    "parquet": write_parquet,
    "hdf5": write_hdf5,
}


def run(source, output, kind="paired", workers=1, **options):
    chosen = PrepareOptions(cleaning=CleaningOptions(kind=kind), **{"num_shards": 3, **options})
    manifest = prepare(find_parts([str(source)], kind), output, chosen, num_workers=workers)
    assert manifest["given"] == manifest["kept"] + sum(manifest["dropped"].values())
    return manifest


def shard_bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.array_record"))}


@pytest.fixture(scope="module")
def prepared(pairs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    write_folder(folder / "given", pairs)
    run(folder / "given", folder / "set")
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_shards(form, pairs, prepared, tmp_path):
    FORMS[form](tmp_path / "given", pairs)
    manifest = run(tmp_path / "given", tmp_path / "set")
    assert (manifest["kept"], manifest["dropped"]) == (NUM_PAIRS, {})
    assert shard_bytes(tmp_path / "set") == shard_bytes(prepared / "set")


def test_records_hold_what_was_given_shuffled(pairs, prepared):
    records = list(open_shards(f"{prepared / 'set'}/train-*"))
    assert sorted(record.captions[0] for record in records) == sorted(caption for _, caption in pairs)
    order = [[caption for _, caption in pairs].index(record.captions[0]) for record in records]
    assert abs(np.corrcoef(order, np.arange(NUM_PAIRS))[0, 1]) < 0.4
    images = {image for image, _ in pairs}
    kept = [record.image for record in records if record.image in images]
    assert len(kept) == len([image for image, _ in pairs if image[:2] == b"\xff\xd8"])
    assert all(record.image[:3] == b"\xff\xd8\xff" for record in records)
    assert len({record.id for record in records}) == NUM_PAIRS


def test_two_workers_and_an_interruption_change_no_byte(pairs, prepared, tmp_path, monkeypatch):
    write_tars(tmp_path / "given", pairs)
    run(tmp_path / "given", tmp_path / "two", workers=2)
    assert shard_bytes(tmp_path / "two") == shard_bytes(prepared / "set")
    from m3ae_tpu.data.prepare import prepare as module

    calls = []

    def dies_at_the_second(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return clean_part(*arguments, **options)

    clean_part = module.clean_part
    monkeypatch.setattr(module, "clean_part", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "given", tmp_path / "killed")
    assert not (tmp_path / "killed" / "manifest.json").exists()
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="unfinished preparation"):
        run(tmp_path / "given", tmp_path / "killed", seed=1)
    run(tmp_path / "given", tmp_path / "killed")
    assert shard_bytes(tmp_path / "killed") == shard_bytes(prepared / "set")
    with pytest.raises(ConfigError, match="holds a prepared set already"):
        run(tmp_path / "given", tmp_path / "killed")


def test_damaged_files_are_dropped_with_a_reason_and_the_others_stay(pairs, tmp_path):
    rng, folder = random.Random(0), tmp_path / "given"
    folder.mkdir()
    untouched = set()
    for number in range(300):
        image = bytearray(pairs[number % NUM_PAIRS][0])
        kind = number % 5
        if kind == 1:
            for _ in range(20):
                image[rng.randrange(len(image))] = rng.randrange(256)
        elif kind == 2:
            del image[rng.randrange(len(image)) :]
        elif kind == 3:
            image[:12] = rng.choice(
                [b"\x89PNG\r\n\x1a\n0000", b"RIFF0000WEBP", b"\0" * 12, b"%PDF-1.4 \n\n\n"]
            )
        if kind in (0, 4):
            untouched.add(f"{number}.{'gif' if kind == 4 else 'jpg'}")
        (folder / f"{number}.{'gif' if kind == 4 else 'jpg'}").write_bytes(bytes(image))
    manifest = run(folder, tmp_path / "set", kind="image")
    assert manifest["given"] == 300
    lines = [json.loads(line) for line in (tmp_path / "set" / "dropped.jsonl").read_text().splitlines()]
    assert len(lines) == sum(manifest["dropped"].values()) > 60
    assert not {line["place"].rpartition("/")[2] for line in lines} & untouched
    for record in open_shards(f"{tmp_path / 'set'}/train-*"):
        assert decode_image(record.image).shape[2] == 3


def test_tar_is_read_on_behind_a_damaged_header(pairs, tmp_path):
    write_tars(tmp_path / "given", pairs)
    path = tmp_path / "given" / "00000.tar"
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        tenth = next(member for member in archive if member.name == "000010.jpg")
    data[tenth.offset : tenth.offset + 100] = b"\xff" * 100
    path.write_bytes(bytes(data))
    manifest = run(tmp_path / "given", tmp_path / "set")
    assert manifest["dropped"] == {"no image": 1}
    assert manifest["kept"] == NUM_PAIRS - 1
    path.write_bytes(bytes(data[: len(data) // 2]))
    manifest = run(tmp_path / "given", tmp_path / "cut")
    assert manifest["dropped"]["archive cut short"] == 1


def test_members_outside_of_the_archive_are_refused(pairs, tmp_path):
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        for name in ("../../etc/x.jpg", "/abs/y.jpg", "good.jpg"):
            member = tarfile.TarInfo(name)
            member.size = len(pairs[0][0])
            archive.addfile(member, io.BytesIO(pairs[0][0]))
    manifest = run(tmp_path / "bad.tar", tmp_path / "set", kind="image", num_shards=1)
    assert (manifest["kept"], manifest["dropped"]) == (1, {"unsafe path": 2})


PICTURE = np.tile(np.arange(0, 240, 5, dtype=np.uint8)[:, None, None], (1, 32, 3))


def odd(kind):
    stream, picture = io.BytesIO(), Image.fromarray(PICTURE)
    if kind == "cmyk":
        picture.convert("CMYK").save(stream, "JPEG", quality=95)
    elif kind == "rotated":
        exif = Image.Exif()
        exif[0x0112] = 6
        picture.transpose(Image.Transpose.ROTATE_90).save(stream, "JPEG", quality=95, exif=exif)
    elif kind == "16-bit":
        Image.fromarray(PICTURE[..., 0].astype(np.uint16) * 257).save(stream, "PNG")
    elif kind == "palette":
        picture.quantize(64).save(stream, "PNG")
    elif kind == "alpha":
        picture.putalpha(255)
        picture.save(stream, "WEBP", lossless=True)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["cmyk", "rotated", "16-bit", "palette", "alpha"])
def test_odd_images_become_the_picture_that_they_show(kind):
    data, size = cleaning.clean_image(odd(kind), CleaningOptions(kind="image"))
    assert data[:3] == b"\xff\xd8\xff"
    assert size == (32, 48)
    assert np.abs(decode_image(data).astype(int) - PICTURE).mean() < 8


def test_large_images_are_limited_and_bombs_refused():
    data, size = cleaning.clean_image(
        jpeg(np.zeros((500, 400, 3), np.uint8)), CleaningOptions(kind="image", max_shorter_side=320)
    )
    assert size == (320, 400)
    assert decode_image(data).shape == (400, 320, 3)
    stream = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(stream, "PNG")
    with pytest.raises(cleaning.Unfit, match="too many pixels"):
        cleaning.clean_image(stream.getvalue(), CleaningOptions(kind="image"))


@pytest.mark.parametrize(
    ("caption", "reason"),
    [("", "empty text"), (b"caf\xe9", "not UTF-8"), ("x" * 100_000, "too long"), ("  \0 ", "empty text")],
)
def test_captions_that_no_model_can_use_are_dropped(caption, reason):
    with pytest.raises(cleaning.Unfit, match=reason):
        cleaning.clean_captions((caption,), CleaningOptions())


def test_texts_of_lines_and_json(tmp_path):
    (tmp_path / "a").write_text("one line\n\nanother, with a comma\n")
    (tmp_path / "b.gz").write_bytes(gzip.compress(b'{"text": "from json"}\nnot json\n'))
    manifest = run(tmp_path, tmp_path / "set", kind="text", num_shards=1)
    texts = {record.captions[0] for record in open_shards(f"{tmp_path / 'set'}/train-*")}
    assert texts == {"one line", "another, with a comma", "from json"}
    assert manifest["dropped"] == {"no JSON": 1}


def test_duplicates_are_counted_and_dropped_where_asked(pairs, tmp_path):
    write_sidecars(tmp_path / "given", [*pairs[:5], *pairs[:3]])
    manifest = run(tmp_path / "given", tmp_path / "all", num_shards=1)
    assert (manifest["kept"], manifest["duplicates"]) == (8, 3)
    assert len({record.id for record in open_shards(f"{tmp_path / 'all'}/train-*")}) == 8
    manifest = run(tmp_path / "given", tmp_path / "unique", drop_duplicates=True, num_shards=1)
    assert (manifest["kept"], manifest["dropped"]) == (5, {"duplicate": 3})


def test_addresses_instead_of_images_are_refused_with_the_tool_that_downloads(tmp_path):
    pyarrow.parquet.write_table(
        pyarrow.table({"url": ["http://x"], "caption": ["y"]}), tmp_path / "x.parquet"
    )
    with pytest.raises(ConfigError, match="img2dataset"):
        run(tmp_path / "x.parquet", tmp_path / "set")


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
    assert (manifest["given"], manifest["kept"], manifest["dropped"]) == (9, 8, {"damaged archive header": 1})


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
        "no JSON": 1,
        "no JSON object": 1,
        "no text": 1,
        "text is not UTF-8": 1,
        "text too long": 1,
        "unreadable image file": 2,
    }


def test_columns_with_quotes_commas_and_other_encodings(pairs, tmp_path):
    (tmp_path / "i.jpg").write_bytes(pairs[0][0])
    lists = {
        "a.tsv": 'file\tcaption\ni.jpg\t"open quote\n',
        "b.csv": 'file,caption\ni.jpg,a dog, running\ni.jpg,"open\ni.jpg,lost\n',
        "c.csv": 'File;Caption\ni.jpg;caf\xe9\ni.jpg;"two\nlines"\n',
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text, encoding="latin-1")
    manifest = run(tmp_path, tmp_path / "set", num_shards=1)
    texts = {record.captions[0] for record in open_shards(f"{tmp_path / 'set'}/train-*")}
    assert texts == {'"open quote', "two\nlines"}
    assert manifest["dropped"] == {
        "row with more fields than the header": 1,
        "text is not UTF-8": 1,
        "unreadable row": 2,
    }


def test_files_are_cut_into_parts_that_hold_every_row_once(pairs, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "IMAGES_IN_A_PART", 7)
    write_parquet(tmp_path / "parquet", pairs)
    table = pyarrow.parquet.read_table(tmp_path / "parquet" / "0000.parquet")
    pyarrow.parquet.write_table(table, tmp_path / "parquet" / "0000.parquet", row_group_size=4)
    write_folder(tmp_path / "csv", pairs)
    write_hdf5(tmp_path / "hdf5", pairs)
    for form, count in {"parquet": 8, "csv": 9, "hdf5": 5}.items():
        assert len(find_parts([str(tmp_path / form)], "paired")) == count
        run(tmp_path / form, tmp_path / f"{form}-set")
        assert shard_bytes(tmp_path / f"{form}-set") == shard_bytes(prepared / "set")


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_files_of_every_form(compress, pairs, tmp_path):
    write_tars(tmp_path / "tar", pairs[:8])
    write_parquet(tmp_path / "parquet", pairs[8:12])
    write_hdf5(tmp_path / "hdf5", pairs[12:16])
    for path in (*tmp_path.glob("tar/*.tar"), *tmp_path.glob("hdf5/*"), *tmp_path.glob("parquet/*")):
        path.write_bytes(compress(path.read_bytes()))
    whole = (tmp_path / "tar" / "00000.tar").read_bytes()
    (tmp_path / "tar" / "00002.tar").write_bytes(whole[: len(whole) // 2])
    found = find_parts([str(tmp_path / form) for form in ("tar", "parquet", "hdf5")], "paired")
    manifest = prepare(found, tmp_path / "set", PrepareOptions(cleaning=CleaningOptions(), num_shards=1))
    # Of the cut archive some samples are there a second time.
    assert manifest["kept"] == 16 + manifest["duplicates"]
    assert manifest["dropped"] == {"archive cut short": 1}


def test_sets_of_an_hdf5_file_are_chosen_by_name(pairs, tmp_path):
    path = tmp_path / "imagenet.hdf5"
    with h5py.File(path, "w") as file:
        for name in ("train", "val"):
            images = file.create_dataset(f"{name}_jpg", (4,), dtype=h5py.vlen_dtype(np.uint8))
            for number in range(4):
                images[number] = np.frombuffer(pairs[number][0], np.uint8)
            file[f"{name}_labels"] = np.arange(4)
    with pytest.raises(ConfigError, match=r"imagenet.hdf5#train, .*#val"):
        run(path, tmp_path / "set", kind="labelled")
    run(f"{path}#val", tmp_path / "set", kind="labelled", num_shards=1)
    assert {record.label_name for record in open_shards(f"{tmp_path / 'set'}/train-*")} == set("0123")


def test_everything_in_a_folder_of_archives_is_accounted_for(pairs, tmp_path):
    write_tars(tmp_path / "given", pairs[:4])
    (tmp_path / "given" / "empty.tar").write_bytes(b"")
    (tmp_path / "given" / "error.tar").write_bytes(b"<html>not found</html>")
    (tmp_path / "given" / "cover.jpg").write_bytes(pairs[5][0])
    manifest = run(tmp_path / "given", tmp_path / "set", num_shards=1)
    assert (manifest["kept"], manifest["dropped"]) == (4, {"no text": 1, "unknown file format": 2})
    assert manifest["inputs"]["tar"]["files"] == 2


def test_odd_sidecars_belong_to_their_image(pairs, tmp_path):
    for number, text in enumerate([b"", b"caf\xe9", "x".encode("utf-16"), b"good"]):
        (tmp_path / f"{number}.jpg").write_bytes(pairs[number][0])
        (tmp_path / f"{number}.txt").write_bytes(text)
    manifest = run(tmp_path, tmp_path / "set", num_shards=1)
    assert (manifest["given"], manifest["kept"]) == (4, 1)
    assert manifest["dropped"] == {"empty text": 1, "text is not UTF-8": 2}


def test_stores_and_packages_that_are_missing_are_named(tmp_path):
    with pytest.raises(ConfigError, match="needs s3fs"):
        find_parts(["s3://bucket/set"], "paired")
