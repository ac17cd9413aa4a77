"""Exports compared with the model that they were made from, on random examples."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from m3ae_tpu.batch import Rows
from m3ae_tpu.errors import UserError
from m3ae_tpu.model.inputs import Normalizer, make_inputs
from m3ae_tpu.model.m3ae import M3AE, Features
from m3ae_tpu.pretrained.pretrained import Pretrained

BATCH_SIZES = (1, 7)
_TOLERANCE = 1e-4
"""Largest difference of a right export, relative to the largest value. Those of float32 are some
1e-6; a wrong activation shows as 1e-3."""


class Comparison(NamedTuple):
    """An export, run and compared with the model."""

    name: str
    """Title of the outputs that were compared, for people."""
    largest: float
    """Largest absolute difference."""
    scale: float
    """Largest absolute value that the model computes."""


def compare(name: str, exported: np.ndarray, wanted: np.ndarray) -> Comparison:
    """Compares outputs of an export with the model's.

    Raises:
        UserError: they differ by more than rounding.
    """
    scale = float(np.abs(wanted).max(initial=0))
    largest = float(np.abs(np.asarray(exported, np.float64) - wanted).max(initial=0))
    if not largest <= _TOLERANCE * max(scale, 1.0):
        raise UserError(
            f"{name} of the export differs from the model by {largest:.2g}, where values are up to "
            f"{scale:.2g}. Nothing was written. Please report this with the model's config.json."
        )
    return Comparison(name, largest, scale)


def compare_features(name: str, outputs: Mapping[str, Any], wanted: Features) -> Comparison:
    """Compares features of an export with the model's; the one that differs most is told.

    Raises:
        UserError: one of them differs by more than rounding.
    """
    each = [
        compare(f"{name}, {output}", np.asarray(array), getattr(wanted, output))
        for output, array in outputs.items()
    ]
    return max(each, key=lambda comparison: comparison.largest)


def random_rows(pretrained: Pretrained, num_rows: int, *, has_image: bool, has_text: bool) -> Rows:
    """Draws images and texts; texts have all lengths from none to the longest."""
    random = np.random.default_rng(num_rows)
    size, length = pretrained.config.data.image_size, pretrained.text_length
    rows = Rows()
    if has_image:
        rows = rows._replace(images=random.integers(0, 256, (num_rows, size, size, 3), np.uint8))
    if has_text:
        vocab = pretrained.config.model.vocab_size
        num_words = np.linspace(length, 0, num_rows).astype(int)
        is_valid = np.arange(length)[None] < num_words[:, None]
        ids = random.integers(0, vocab, (num_rows, length), np.int32)
        rows = rows._replace(text_ids=np.where(is_valid, ids, 0).astype(np.int32))
        rows = rows._replace(is_valid=is_valid)
    return rows


def features_of(model: M3AE, normalizer: Normalizer, rows: Rows) -> Features:
    """Computes the features of rows in full precision, as NumPy arrays."""
    with jax.default_matmul_precision("highest"):
        features = _encode(model, jax.tree.map(jnp.asarray, rows), normalizer)
    return jax.tree.map(np.asarray, features)


@functools.partial(jax.jit, static_argnums=2)
def _encode(model: M3AE, rows: Rows, normalizer: Normalizer) -> Features:
    return model.encode(make_inputs(rows, normalizer, jnp.float32))
