"""Folders of small files as people have them, prepared, for the tests of odd inputs."""

import functools
import io
import json
import pathlib

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image
from prepare_forms import run

from m3ae_tpu.data.shards import open_shards
from m3ae_tpu.prepare.options import SampleKind


@functools.cache
def image(number: int, format: str = "JPEG") -> bytes:
    """Returns a small image that differs from those of other numbers."""
    pixels = np.random.default_rng(number).integers(0, 256, (4, 6, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize((48, 32)).save(stream, format)
    return stream.getvalue()


def images(folder: str = "", count: int = 2) -> dict[str, bytes]:
    """Returns images `0.jpg`, `1.jpg`, ... in a folder, by path."""
    return {f"{folder}{number}.jpg": image(number) for number in range(count)}


def parquet(columns, metadata=None) -> bytes:
    table = pyarrow.table(columns)
    stream = io.BytesIO()
    pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), stream)
    return stream.getvalue()


def write_files(folder: pathlib.Path, files) -> pathlib.Path:
    """Writes files, given by path as bytes or as text in UTF-8."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def prepare(tmp_path: pathlib.Path, files, kind: SampleKind = "paired"):
    """Prepares the files in a folder of their own.

    Returns:
        The manifest; the set's records; and the names of files that were passed over, by reason.
    """
    given = write_files(tmp_path / "given", files)
    manifest = run(given, tmp_path / "set", kind=kind, num_shards=1)
    records = list(open_shards(f"{tmp_path}/set/train-*"))
    passed_over = {}
    listed = tmp_path / "set" / "passed_over.jsonl"
    for line in listed.read_text().splitlines() if listed.exists() else ():
        of_file = json.loads(line)
        name = str(pathlib.Path(of_file["place"]).relative_to(given))
        passed_over.setdefault(of_file["reason"], []).append(name)
    return manifest, records, passed_over


def dropped(tmp_path: pathlib.Path) -> list[dict[str, str]]:
    """Returns the lines of `dropped.jsonl`."""
    return [
        json.loads(line) for line in (tmp_path / "set" / "dropped.jsonl").read_text().splitlines()
    ]
