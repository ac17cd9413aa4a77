"""Small sets of shards, and the data of runs on them."""

import io
import pathlib

import jax
import numpy as np
from PIL import Image

from m3ae_tpu.config import DataConfig, SourceConfig
from m3ae_tpu.data.records import Record
from m3ae_tpu.data.shards import open_shards, write_shards
from m3ae_tpu.data.sources import OpenData, open_data
from m3ae_tpu.data.text import Tokenizer

TOKENIZER = Tokenizer("starter/tokenizer.model")


def write_sets(folder: pathlib.Path) -> None:
    """Writes 24 pairs, 10 images and 15 texts of the starter set."""
    for name, pattern, n in (
        ("pairs", "train", 24),
        ("images", "images", 10),
        ("texts", "texts", 15),
    ):
        shards = open_shards(f"starter/{pattern}-*")
        write_shards(folder, name, [shards[index] for index in range(n)], num_shards=2)


def data_of(folder: pathlib.Path, *, batch_size: int = 12, seed: int = 0, **options) -> OpenData:
    """Batches of 12: 6 pairs of two sources, 2 images, 4 texts."""
    sources = (
        SourceConfig(shards=f"{folder}/pairs-*", weight=4.0, text_length=32),
        SourceConfig(kind="image", shards=f"{folder}/images-*", weight=2.0),
        SourceConfig(kind="text", shards=f"{folder}/texts-*", weight=4.0, text_length=8),
        SourceConfig(shards=f"{folder}/pairs-00000*", weight=2.0, text_length=32),
    )
    config = DataConfig(**{"sources": sources, "image_size": 16, "num_workers": 0} | options)
    return open_data(config, batch_size=batch_size, seed=seed, vocab_size=4_000)


def pairs_of(folder: pathlib.Path, *, batch_size: int = 8, **options) -> OpenData:
    sources = (SourceConfig(shards=f"{folder}/pairs-*", text_length=32),)
    return data_of(folder, sources=sources, batch_size=batch_size, **options)


def assert_equal(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def numbered(n: int) -> list[Record]:
    """Returns records told apart by their caption and by the brightness of their image."""
    records = []
    for index in range(n):
        file = io.BytesIO()
        Image.new("RGB", (20, 20), (10 * index,) * 3).save(file, "PNG")
        records.append(Record(id=str(index), image=file.getvalue(), captions=(f"number {index}",)))
    return records
