"""The same pairs in every form that `prepare_data` reads, for its tests."""

import csv
import io
import json
import tarfile

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

from m3ae_tpu.data.images import decode_image
from m3ae_tpu.data.shards import open_shards
from m3ae_tpu.prepare.local import prepare_locally
from m3ae_tpu.prepare.options import CleaningOptions, PrepareOptions, SampleKind
from m3ae_tpu.prepare.pieces import find_pieces

NUM_PAIRS = 60


def jpeg(pixels, **options):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=90, **options)
    return stream.getvalue()


def starter_pairs():
    """Images and captions of the starter set: every third as JPEG, the rest as the WebP that they
    are.
    """
    records = open_shards("starter/heldout-*")
    found = []
    for index in range(NUM_PAIRS):
        image = records[index].image
        found.append(
            (jpeg(decode_image(image)) if index % 3 == 0 else image, records[index].captions[0])
        )
    return found


def write_folder(folder, pairs):
    (folder / "images").mkdir(parents=True)
    with (folder / "list.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "caption"])
        for number, (image, caption) in enumerate(pairs):
            (folder / "images" / f"{number}.jpg").write_bytes(image)
            rows.writerow([f"images/{number}.jpg", caption])


def write_sidecars(folder, pairs):
    folder.mkdir(parents=True)
    for number, (image, caption) in enumerate(pairs):
        (folder / f"{number:04d}.png").write_bytes(image)
        (folder / f"{number:04d}.txt").write_text(caption)


def write_tars(folder, pairs):
    folder.mkdir(parents=True)
    half = len(pairs) // 2
    for shard, of_shard in enumerate((pairs[:half], pairs[half:])):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as archive:
            for number, (image, caption) in enumerate(of_shard):
                texts = {
                    "txt": caption.encode(),
                    "json": json.dumps({"caption": "not this"}).encode(),
                }
                for ending, content in {"jpg": image, **texts}.items():
                    member = tarfile.TarInfo(f"{number:06d}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        # What img2dataset leaves beside each archive.
        (folder / f"{shard:05d}_stats.json").write_text("{}")
        pyarrow.parquet.write_table(
            pyarrow.table({"url": ["http://x"]}), folder / f"{shard:05d}.parquet"
        )


def write_parquet(folder, pairs):
    folder.mkdir(parents=True)
    table = pyarrow.table(
        {"image": [{"bytes": i, "path": None} for i, _ in pairs], "text": [c for _, c in pairs]}
    )
    pyarrow.parquet.write_table(table, folder / "0000.parquet")


def write_hdf5(folder, pairs):
    folder.mkdir(parents=True)
    with h5py.File(folder / "set.hdf5", "w") as file:
        for name, column in (
            ("jpg", [i for i, _ in pairs]),
            ("caption", [c.encode() for _, c in pairs]),
        ):
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


def run(source, output, kind: SampleKind = "paired", workers=1, **options):
    chosen = PrepareOptions(cleaning=CleaningOptions(kind=kind), **{"num_shards": 3, **options})
    manifest = prepare_locally(
        find_pieces([str(source)], kind), output, chosen, num_workers=workers
    )
    assert manifest["given"] == manifest["kept"] + sum(manifest["dropped"].values())
    return manifest


def shard_bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.array_record"))}
