"""Guards the preparation of collections: every form gives the same records, nothing is lost,
nothing is random.
"""

import gzip
import io
import json
import random
import struct
import tarfile
import zlib

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from prepare_forms import (
    FORMS,
    NUM_PAIRS,
    jpeg,
    run,
    shard_bytes,
    write_sidecars,
    write_tars,
)

from m3ae_tpu.data.images import decode_image
from m3ae_tpu.data.shards import open_shards
from m3ae_tpu.errors import UserError
from m3ae_tpu.prepare import cleaning
from m3ae_tpu.prepare.options import CleaningOptions


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_shards(form, pairs, prepared, tmp_path):
    FORMS[form](tmp_path / "given", pairs)
    manifest = run(tmp_path / "given", tmp_path / "set")
    assert (manifest["kept"], manifest["dropped"]) == (NUM_PAIRS, {})
    assert shard_bytes(tmp_path / "set") == shard_bytes(prepared / "set")


def test_records_hold_what_was_given_shuffled(pairs, prepared):
    records = list(open_shards(f"{prepared / 'set'}/train-*"))
    assert sorted(record.captions[0] for record in records) == sorted(
        caption for _, caption in pairs
    )
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
    from m3ae_tpu.prepare import local as module

    calls = []

    def dies_at_the_second(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return clean_piece(*arguments, **options)

    clean_piece = module.clean_piece
    monkeypatch.setattr(module, "clean_piece", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "given", tmp_path / "killed")
    assert not (tmp_path / "killed" / "manifest.json").exists()
    monkeypatch.undo()
    with pytest.raises(UserError, match="unfinished preparation"):
        run(tmp_path / "given", tmp_path / "killed", seed=1)
    run(tmp_path / "given", tmp_path / "killed")
    assert shard_bytes(tmp_path / "killed") == shard_bytes(prepared / "set")
    with pytest.raises(UserError, match="holds a prepared set already"):
        run(tmp_path / "given", tmp_path / "killed")


def test_captions_that_change_during_an_interruption_are_noticed(pairs, tmp_path, monkeypatch):
    from m3ae_tpu.prepare import local as module

    def dies(*arguments, **options):
        raise KeyboardInterrupt

    write_sidecars(tmp_path / "given", pairs[:4])
    monkeypatch.setattr(module, "count_shards", dies)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "given", tmp_path / "set")
    monkeypatch.undo()
    (tmp_path / "given" / "0002.txt").write_text("another text")
    with pytest.raises(UserError, match="unfinished preparation of other input"):
        run(tmp_path / "given", tmp_path / "set")


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
    lines = [
        json.loads(line) for line in (tmp_path / "set" / "dropped.jsonl").read_text().splitlines()
    ]
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


PIXELS = np.tile(np.arange(0, 240, 5, dtype=np.uint8)[:, None, None], (1, 32, 3))


def encoded(kind):
    stream, image = io.BytesIO(), Image.fromarray(PIXELS)
    if kind == "cmyk":
        image.convert("CMYK").save(stream, "JPEG", quality=95)
    elif kind == "rotated":
        exif = Image.Exif()
        exif[0x0112] = 6
        image.transpose(Image.Transpose.ROTATE_90).save(stream, "JPEG", quality=95, exif=exif)
    elif kind == "16-bit":
        Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257).save(stream, "PNG")
    elif kind == "palette":
        image.quantize(64).save(stream, "PNG")
    elif kind == "alpha":
        image.putalpha(255)
        image.save(stream, "WEBP", lossless=True)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["cmyk", "rotated", "16-bit", "palette", "alpha"])
def test_odd_images_become_upright_jpegs(kind):
    data, size = cleaning.clean_image(encoded(kind), CleaningOptions(kind="image"))
    assert data[:3] == b"\xff\xd8\xff"
    assert size == (32, 48)
    assert np.abs(decode_image(data).astype(int) - PIXELS).mean() < 8


def test_an_image_too_wide_for_a_jpeg_is_dropped_with_its_reason():
    stream = io.BytesIO()
    Image.new("RGB", (70_000, 20)).save(stream, "PNG")
    with pytest.raises(cleaning.Unfit, match="too wide or high"):
        cleaning.clean_image(stream.getvalue(), CleaningOptions())


def test_large_images_are_limited():
    data, size = cleaning.clean_image(
        jpeg(np.zeros((500, 400, 3), np.uint8)), CleaningOptions(kind="image", max_shorter_side=320)
    )
    assert size == (320, 400)
    assert decode_image(data).shape == (400, 320, 3)


@pytest.mark.parametrize("side", [8_001, 20_000])
def test_images_that_announce_too_many_pixels_are_not_decoded(side):
    stream = io.BytesIO()
    Image.new("1", (8, 8)).save(stream, "PNG")
    start, _, end = stream.getvalue().partition(b"IHDR")
    header = b"IHDR" + struct.pack(">II", side, side) + end[8:13]
    bomb = start + header + struct.pack(">I", zlib.crc32(header)) + end[17:]
    with pytest.raises(cleaning.Unfit, match="too many pixels"):
        cleaning.clean_image(bomb, CleaningOptions(kind="image"))


def test_texts_of_lines_and_json(tmp_path):
    (tmp_path / "a").write_text("one line\n\nanother, with a comma\n")
    (tmp_path / "b.gz").write_bytes(gzip.compress(b'{"text": "from json"}\nnot json\n'))
    manifest = run(tmp_path, tmp_path / "set", kind="text", num_shards=1)
    texts = {record.captions[0] for record in open_shards(f"{tmp_path / 'set'}/train-*")}
    assert texts == {"one line", "another, with a comma", "from json"}
    assert manifest["dropped"] == {"not JSON": 1}


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
    with pytest.raises(UserError, match="img2dataset"):
        run(tmp_path / "x.parquet", tmp_path / "set")
