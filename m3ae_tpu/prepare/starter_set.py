"""Shards of the starter set, made from its source form: JSON lines and a zip of images."""

import gzip
import json
import os
import pathlib
import zipfile
from typing import Any

from m3ae_tpu.data.manifest import MANIFEST
from m3ae_tpu.data.records import Record
from m3ae_tpu.data.shards import open_shards, write_shards
from m3ae_tpu.errors import require
from m3ae_tpu.files import atomic_write, file_sha256

_SOURCE_FILES = (
    "pairs.jsonl.gz",
    "images_only.jsonl.gz",
    "texts_only.jsonl.gz",
    "starter_images.zip",
)


def make_starter_set(
    source: pathlib.Path, output: pathlib.Path, *, overwrite: bool = False
) -> dict[str, Any]:
    """Writes the starter set's shards and returns the manifest.

    Args:
        source: Folder of the source form.
        output: Folder of the set, made if missing.
        overwrite: Replaces a set in `output`.

    Raises:
        UserError: a source file is missing, or `output` holds a set and `overwrite` is false.
    """
    for name in _SOURCE_FILES:
        require(
            (source / name).is_file(),
            f"--source = {source} holds no {name}. Name the folder of the source form.",
        )
    require(
        overwrite or not (output / MANIFEST).exists(),
        f"--output = {output} holds a set already. Name another folder, or add --overwrite.",
    )
    output.mkdir(parents=True, exist_ok=True)

    with zipfile.ZipFile(source / "starter_images.zip") as images:
        pairs = [(row["split"], _example(row, images)) for row in _rows(source / "pairs.jsonl.gz")]
        unpaired_images = [_example(row, images) for row in _rows(source / "images_only.jsonl.gz")]
    sets = {
        "train": [record for split, record in pairs if split == "train"],
        "heldout": [record for split, record in pairs if split == "heldout"],
        "images": unpaired_images,
        "texts": [
            Record(
                id=row["id"], captions=(row["text"],), source=row["source"], license=row["license"]
            )
            for row in _rows(source / "texts_only.jsonl.gz")
        ],
    }
    # Two shards for training: larger sets have several too.
    paths = [
        path
        for name, records in sets.items()
        for path in write_shards(output, name, records, num_shards=2 if name == "train" else 1)
    ]

    manifest = {
        "records": {name: len(records) for name, records in sets.items()},
        "shards": {
            os.path.basename(path): {
                "records": len(open_shards(path)),
                "sha256": file_sha256(pathlib.Path(path)),
            }
            for path in paths
        },
    }
    atomic_write(output / "ATTRIBUTION.md", (source / "ATTRIBUTION.md").read_text())
    atomic_write(output / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return manifest


def _rows(path: pathlib.Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _example(row: dict[str, Any], images: zipfile.ZipFile) -> Record:
    captions = [row["caption"], *row["alt_captions"]] if "caption" in row else []
    return Record(
        id=row["id"],
        image=images.read(row["file"]),
        captions=tuple(captions),
        label_name=row.get("label", ""),
        title=row.get("title", ""),
        group=row.get("dup_group", ""),
        source=row["source"],
        creator=row["creator"],
        license=row["license"],
    )
