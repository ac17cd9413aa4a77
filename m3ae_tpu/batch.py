"""The batch: how many rows it has of each source, its class, its shapes, and a random one."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from m3ae_tpu.config import DataConfig, Kind, SourceConfig
from m3ae_tpu.errors import require


class Source(NamedTuple):
    """A source's place in a run; follows from the config alone."""

    name: str
    """Its kind, followed by its number among the sources if there are others of that kind."""
    rows: int
    """Rows in each global batch."""
    config: SourceConfig

    @property
    def kind(self) -> Kind:
        return self.config.kind

    @property
    def text_length(self) -> int:
        """Tokens of a row's text; 0 for images alone."""
        return self.config.text_length if self.kind != "image" else 0


class Rows(NamedTuple):
    """The rows of one kind in a batch; what the kind lacks is None.

    Arrays are NumPy's from the loader, JAX's on the devices, or `jax.ShapeDtypeStruct`.
    """

    images: Any = None
    """uint8 [rows, size, size, 3]."""
    is_flipped: Any = None
    """bool [rows]: which images the train step mirrors, where it costs nothing."""
    text_ids: Any = None
    """int32 [rows, text_length], padded with 0 at the end."""
    is_valid: Any = None
    """bool [rows, text_length]: True for tokens, False for padding."""
    labels: Any = None
    """int32 [rows], numbers of classes, where a run learns them."""


type Batch = dict[Kind, Rows]
"""Rows by kind, for the kinds that a run has. A process holds its own rows of a global batch."""


def mixture(data: DataConfig, batch_size: int) -> tuple[Source, ...]:
    """Apportions `batch_size` rows to the sources by their weights, with the largest remainders.

    Raises:
        UserError: a source would get no row, or sources of one kind differ in `text_length`.
    """
    configs = data.sources
    total = sum(config.weight for config in configs)
    shares = [batch_size * config.weight / total for config in configs]
    rows = [math.floor(share) for share in shares]
    # Ties go to the source that is named first: sorting is stable.
    by_remainder = sorted(range(len(rows)), key=lambda index: rows[index] - shares[index])
    for index in by_remainder[: batch_size - sum(rows)]:
        rows[index] += 1
    for config, count in zip(configs, rows, strict=True):
        require(
            count > 0,
            f"weight = {config.weight} of source {config.shards} gives it no row in a batch of "
            f"{batch_size}. Set a weight of {total / batch_size:g} or more, or a larger "
            "batch_size.",
        )
    kinds = [config.kind for config in configs]
    sources = tuple(
        Source(f"{kind}_{index}" if kinds.count(kind) > 1 else kind, count, config)
        for index, (kind, count, config) in enumerate(zip(kinds, rows, configs, strict=True))
    )
    _require_equal_lengths(sources)
    return sources


def _require_equal_lengths(sources: Sequence[Source]) -> None:
    lengths: dict[Kind, int] = {}
    for source in sources:
        length = lengths.setdefault(source.kind, source.text_length)
        require(
            length == source.text_length,
            f"text_length = {source.text_length} of source {source.config.shards} differs from "
            f"another {source.kind!r} source's {length}; they share an array. "
            "Set the same for both.",
        )


def batch_shapes(sources: Sequence[Source], image_size: int) -> Batch:
    """Returns a global batch of `jax.ShapeDtypeStruct`s."""
    batch: Batch = {}
    kinds: dict[Kind, None] = dict.fromkeys(source.kind for source in sources)
    for kind in kinds:
        of_kind = [source for source in sources if source.kind == kind]
        rows, length = sum(source.rows for source in of_kind), of_kind[0].text_length
        images = jax.ShapeDtypeStruct((rows, image_size, image_size, 3), np.uint8)
        is_flipped = jax.ShapeDtypeStruct((rows,), np.bool)
        text_ids = jax.ShapeDtypeStruct((rows, length), np.int32)
        is_valid = jax.ShapeDtypeStruct((rows, length), np.bool)
        batch[kind] = Rows(
            *((images, is_flipped) if kind != "text" else (None, None)),
            *((text_ids, is_valid) if kind != "image" else (None, None)),
        )
    return batch


def random_batch(shapes: Batch, *, vocab_size: int) -> Batch:
    """Returns a batch of random pixels and words in NumPy arrays; texts have all lengths."""
    rng = np.random.default_rng(0)

    def draw(rows: Rows) -> Rows:
        drawn = Rows()
        if rows.images is not None:
            images = rng.integers(0, 256, rows.images.shape, np.uint8)
            drawn = drawn._replace(images=images, is_flipped=rng.random(len(images)) < 0.5)
        if rows.text_ids is not None:
            num_rows, length = rows.text_ids.shape
            is_valid = np.arange(length) < rng.integers(1, length + 1, (num_rows, 1))
            text_ids = rng.integers(1, vocab_size, (num_rows, length), np.int32)
            text_ids = np.where(is_valid, text_ids, np.int32(0))
            drawn = drawn._replace(text_ids=text_ids, is_valid=is_valid)
        return drawn

    return {kind: draw(rows) for kind, rows in shapes.items()}
