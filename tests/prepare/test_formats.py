"""Guards the recognition of files: formats that are read, and known ones that are named."""

import io
import pickle
import struct
import zipfile

import numpy as np
import pyarrow
import pyarrow.feather
import pyarrow.orc
import pytest
from PIL import Image
from prepare_forms import jpeg, run

from m3ae_tpu.data.image_formats import image_format
from m3ae_tpu.errors import UserError
from m3ae_tpu.prepare.formats import file_format
from m3ae_tpu.prepare.unread_formats import unread_format

IMAGE = Image.fromarray(np.arange(48 * 32 * 3, dtype=np.uint8).reshape(32, 48, 3))
TABLE = pyarrow.table({"text": ["one", "two"]})
READ = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM", "ICO", "QOI")


def saved(format, **options):
    stream = io.BytesIO()
    IMAGE.save(stream, format, **options)
    return stream.getvalue()


def zipped(name, content=b"x"):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, content)
    return stream.getvalue()


def written(write):
    stream = io.BytesIO()
    write(stream)
    return stream.getvalue()


def arrow(new):
    def write(stream):
        with new(stream, TABLE.schema) as writer:
            writer.write_table(TABLE)

    return written(write)


def tiff(entries, order="<"):
    """Returns a TIFF of one directory of (tag, type, value)."""
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    values = (
        struct.pack(f"{order}HHI", tag, kind, 1)
        + (struct.pack(f"{order}HH", value, 0) if kind == 3 else struct.pack(f"{order}I", value))
        for tag, kind, value in entries
    )
    return start + b"".join(values) + bytes(4)


@pytest.mark.parametrize("format", READ)
def test_an_image_of_every_format_is_recognised_and_kept(format, tmp_path):
    data = saved(format)
    assert image_format(data) == image_format(data[:512]) == format
    assert unread_format(data) is None
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "image").write_bytes(data)
    assert file_format(str(tmp_path / "in" / "image")) == "image"
    manifest = run(tmp_path / "in", tmp_path / "set", kind="image", num_shards=1)
    assert (manifest["given"], manifest["kept"]) == (1, 1)


UNREAD = {
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "HEIC in a general container": b"\0\0\0\x1cftypmif1\0\0\0\0mif1miafheic",
    "JPEG XL": b"\0\0\0\x0cJXL \r\n\x87\n",
    "JPEG XL codestream": b"\xff\x0a\x7a\x1f",
    "SVG": b'<?xml version="1.0"?>\n<!-- made > by hand -->\n<svg xmlns="http://x">',
    "XML": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "HTML": b"\n<!DOCTYPE html>\n<html><body>404</body></html>",
    "PDF": b"%PDF-1.7\n%\xe2\xe3",
    "EPS or PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "TGA": saved("TGA"),
    "PCX": saved("PCX"),
    "SGI image": saved("SGI"),
    "DDS": saved("DDS"),
    "camera RAW, DNG": tiff([(50706, 1, 1)]),
    "camera RAW, NEF": tiff([(254, 4, 1), (262, 3, 2), (330, 4, 99)], ">"),
    "camera RAW, filter": tiff([(254, 4, 0), (262, 3, 32803)]),
    "camera RAW, CR2": b"II*\0\x10\0\0\0CR\2\0",
    "camera RAW, CR3": b"\0\0\0\x18ftypcrx \0\0\0\1",
    "zip": zipped("a.jpg"),
    "7z": b"7z\xbc\xaf\x27\x1c\0\4",
    "RAR": b"Rar!\x1a\x07\1\0",
    "Office document": zipped("[Content_Types].xml"),
    "Office document, OpenDocument": zipped("mimetype", b"application/vnd.oasis.x"),
    "NumPy archive": written(lambda stream: np.savez(stream, a=np.zeros(3))),
    "NumPy array": written(lambda stream: np.save(stream, np.zeros(3))),
    "PyTorch": zipped("archive/data.pkl"),
    "pickle": pickle.dumps({"a": 1}),
    "Arrow, file": arrow(pyarrow.ipc.new_file),
    "Arrow, stream": arrow(pyarrow.ipc.new_stream),
    "Feather": b"FEA1\0\0\0\0",
    "ORC": written(lambda stream: pyarrow.orc.write_table(TABLE, stream)),
    "Avro": b"Obj\x01\x04\x14avro.codec",
    "SQLite": b"SQLite format 3\0\x10\0",
    "TFRecord": struct.pack("<QI", 26, 0x2DD89B12),
    "MATLAB": b"MATLAB 5.0 MAT-file, Platform: GLNXA64",
    "video, MP4": b"\0\0\0\x20ftypisom\0\0\2\0",
    "video, WebM": b"\x1aE\xdf\xa3\x9fB\x86",
    "sound": b"RIFF\x24\0\0\0WAVEfmt ",
}


@pytest.mark.parametrize("case", UNREAD)
def test_a_known_format_that_is_not_read_is_named_with_the_way_out(case, tmp_path):
    found = unread_format(UNREAD[case])
    assert found is not None
    name = case.partition(",")[0].partition(" in a")[0].removesuffix(" codestream")
    assert found.reason == f"{name} is not read"
    assert found.way_out
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.bin").write_bytes(UNREAD[case])
    assert file_format(str(tmp_path / "in" / "0.bin")) == "unread"
    with pytest.raises(UserError, match="is not read"):
        run(tmp_path / "in", tmp_path / "set", kind="image", num_shards=1)


@pytest.mark.parametrize(("kind", "name"), [("image", "0.jpg"), ("text", "0.parquet")])
def test_pointers_of_git_are_named(kind, name, tmp_path):
    (tmp_path / "in").mkdir()
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:6fd5d72f\nsize 90405214\n"
    (tmp_path / "in" / name).write_text(pointer)
    (tmp_path / "in" / "1.jpg").write_bytes(jpeg(np.asarray(IMAGE)))
    (tmp_path / "in" / "1.txt").write_text("a text")
    manifest = run(tmp_path / "in", tmp_path / "set", kind=kind, num_shards=1)
    assert manifest["dropped"]["not fetched from Git LFS"] == 1
    assert '"detail": "git lfs pull"' in (tmp_path / "set" / "dropped.jsonl").read_text()


@pytest.mark.parametrize(
    "text",
    [
        "The wide river",
        "the big DUCK swims",
        "P3 12 14 16 are seats",
        "P3 is a format",
        "GIF images move",
        "BM is short",
        "PK and others",
        "Object",
        "icns are icons",
        "7zip packs",
        "ORCHIDS bloom",
        "<3 is a heart",
        "<p>a paragraph</p>",
        "I wrote <svg> today",
        "version 2",
        "MATLAB 5 is old",
        "SQLite is small",
    ],
)
def test_a_text_is_not_taken_for_another_format(text, tmp_path):
    (tmp_path / "t.txt").write_text(text)
    assert file_format(str(tmp_path / "t.txt")) == "table"


def test_ordinary_tiffs_are_not_taken_for_camera_raw():
    for options in ({}, {"compression": "tiff_lzw"}, {"big_tiff": True}):
        assert image_format(saved("TIFF", **options)) == "TIFF"
    pages = written(lambda stream: IMAGE.save(stream, "TIFF", save_all=True, append_images=[IMAGE]))
    assert image_format(pages) == "TIFF"
    assert image_format(tiff([(254, 4, 1), (262, 3, 2)])) == "TIFF"


def test_what_is_not_an_image_is_described(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.jpg").write_bytes(jpeg(np.asarray(IMAGE)))
    (tmp_path / "in" / "1.jpg").write_bytes(b"Not found")
    run(tmp_path / "in", tmp_path / "set", kind="image", num_shards=1)
    assert "starts with b'Not found'" in (tmp_path / "set" / "dropped.jsonl").read_text()
