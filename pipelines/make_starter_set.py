"""Makes the starter set's shards from their source form.

    python -m pipelines.make_starter_set --output=FOLDER

Reads `pairs.jsonl.gz`, `images_only.jsonl.gz`, `texts_only.jsonl.gz` and `starter_images.zip`, and
writes `train-*` (3,894 pairs), `heldout-*` (973 pairs), `images-*` (300) and `texts-*` (10,672)
shards, `manifest.json` (records and SHA-256 of each) and `ATTRIBUTION.md`. Images keep their WebP
bytes. The same source gives the same files. Takes some seconds; needs no network.
"""

import gzip
import json
import os
import pathlib
import zipfile
from typing import Any

from absl import flags

from m3ae_tpu.command_line import run_program
from m3ae_tpu.data.manifest import STARTER
from m3ae_tpu.data.records import Record
from m3ae_tpu.data.shards import open_shards, write_shards
from m3ae_tpu.errors import UserError, require
from m3ae_tpu.files import atomic_write, file_sha256

_SOURCE = flags.DEFINE_string("source", str(STARTER / "source"), "Folder of the source form.")
_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder that gets the shards, made if missing.", required=True
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a set that is already there.")


def make_starter_set(
    source: pathlib.Path, output: pathlib.Path, *, overwrite: bool = False
) -> dict[str, Any]:
    """Writes the starter set's shards and returns the manifest.

    Raises:
        UserError: a source file is missing, or `output` holds a set and `overwrite` is false.
    """
    for name in (
        "pairs.jsonl.gz",
        "images_only.jsonl.gz",
        "texts_only.jsonl.gz",
        "starter_images.zip",
    ):
        require(
            (source / name).is_file(),
            f"--source={source} holds no {name}. Name the folder of the source form.",
        )
    require(
        overwrite or not (output / "manifest.json").exists(),
        f"--output={output} holds a set already. Name another folder, or add --overwrite.",
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
    # Two shards of the set that is trained on: what every larger set looks like.
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
    atomic_write(output / "manifest.json", json.dumps(manifest, indent=1) + "\n")
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


def main(argv: list[str]) -> None:
    """Makes the set that the flags ask for and prints what is in it."""
    if len(argv) > 1:
        raise UserError(f"argument {argv[1]!r} belongs to no flag. See --help.")
    manifest = make_starter_set(
        pathlib.Path(_SOURCE.value), pathlib.Path(_OUTPUT.value or ""), overwrite=_OVERWRITE.value
    )
    print(
        f"{_OUTPUT.value}: " + ", ".join(f"{n:,} {name}" for name, n in manifest["records"].items())
    )


def run() -> None:
    """Entry point of the installed command `m3ae-make-starter-set`."""
    run_program(main)


if __name__ == "__main__":
    run()
