"""Vectors of an example's tokens: any poolings of any layers, computed on all devices."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from m3ae_tpu.batch import Rows
from m3ae_tpu.features.options import Norm, Pooling
from m3ae_tpu.model.inputs import Normalizer, make_inputs
from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.parallel.row_map import RowMap
from m3ae_tpu.pretrained.pretrained import ENCODED_AT_A_TIME, Pretrained

CONCATENATED = "features"
"""Name of the one array of concatenated poolings and layers."""
TOKEN_IS_VALID = "token_is_valid"
"""Name of the array [rows, tokens] beside tokens with texts: False for padding."""


class Column(NamedTuple):
    """A pooling of a layer, and its place among the values of an array."""

    pooling: Pooling
    layer: int
    start: int
    stop: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class PooledLayers:
    """Poolings of layers, and how they are laid out in arrays."""

    poolings: tuple[Pooling, ...]
    layers: tuple[int, ...]
    """Numbers from 1 on."""
    num_layers: int
    """Layers of the encoder."""
    width: int
    norm: Norm
    concatenate: bool

    def arrays(self) -> dict[str, list[Column]]:
        """Returns the columns of each array by its name: pooling by pooling, layer by layer."""
        pairs: list[tuple[Pooling, int]] = [
            (pooling, layer) for pooling in self.poolings for layer in self.layers
        ]
        if self.concatenate:
            return {CONCATENATED: list(self._columns(pairs))}
        return {self._name(*pair): list(self._columns([pair])) for pair in pairs}

    def _name(self, pooling: Pooling, layer: int) -> str:
        return f"{pooling}.layer-{layer:02d}" if len(self.layers) > 1 else pooling

    def _columns(self, pairs: list[tuple[Pooling, int]]) -> Iterator[Column]:
        for number, (pooling, layer) in enumerate(pairs):
            yield Column(pooling, layer, number * self.width, (number + 1) * self.width)

    def __call__(self, model: M3AE, rows: Rows, normalizer: Normalizer) -> dict[str, Array]:
        """Computes the arrays of a batch's rows in float32, by name."""
        inputs = make_inputs(rows, normalizer, jnp.float32)
        is_last = self.layers == (self.num_layers,)
        if is_last:
            tokens = model.encode(inputs, final_norm=self.norm != "none").tokens[None]
        else:
            every = model.encode_layers(inputs, final_norm=False).tokens
            tokens = jnp.stack([self._normed(model, every, layer) for layer in self.layers])
        tokens = tokens.astype(jnp.float32)
        is_valid = None
        if rows.is_valid is not None:
            num_before = tokens.shape[2] - rows.is_valid.shape[1]
            before = jnp.ones((tokens.shape[1], num_before), bool)
            is_valid = jnp.concatenate([before, rows.is_valid], axis=1)
        num_patches = 0
        if inputs.images is not None:
            grid = model.grid(inputs.images)
            num_patches = grid[0] * grid[1]
        pooled = {
            (pooling, layer): _pooled(of_layer, pooling, num_patches, is_valid)
            for pooling in self.poolings
            for layer, of_layer in zip(self.layers, tokens, strict=True)
        }
        arrays = {
            name: jnp.concatenate([pooled[column[:2]] for column in columns], axis=-1)
            for name, columns in self.arrays().items()
        }
        if "tokens" in self.poolings and is_valid is not None:
            arrays[TOKEN_IS_VALID] = is_valid
        return arrays

    def _normed(
        self, model: M3AE, every: Float[Array, "layers batch tokens width"], layer: int
    ) -> Float[Array, "batch tokens width"]:
        tokens = every[layer - 1]
        is_normed = self.norm == "all" or (self.norm == "last" and layer == self.num_layers)
        return model.encoder.norm(tokens) if is_normed else tokens


def _pooled(
    tokens: Float[Array, "batch tokens width"],
    pooling: Pooling,
    num_patches: int,
    is_valid: Bool[Array, "batch tokens"] | None,
) -> Float[Array, "batch *pooled width"]:
    """Pools one layer's tokens [class, patches, text]; padding does not count, and becomes 0.

    Args:
        tokens: In float32.
        pooling: Its name.
        num_patches: Patches of an image; 0 without images.
        is_valid: False for padding; None: there is none.
    """
    if pooling == "cls":
        return tokens[:, 0]
    weights = jnp.ones(tokens.shape[:2], jnp.float32)
    if is_valid is not None:
        weights = is_valid.astype(jnp.float32)
    if pooling == "tokens":
        return tokens * weights[..., None]
    first, stop = {
        "image_mean": (1, 1 + num_patches),
        "text_mean": (1 + num_patches, tokens.shape[1]),
        "mean": (1, tokens.shape[1]),
    }[pooling]
    weights = weights[:, first:stop]
    total = jnp.einsum("btd,bt->bd", tokens[:, first:stop], weights)
    return total / jnp.maximum(weights.sum(axis=1, keepdims=True), jnp.float32(1))


class Encoder:
    """A model's pooled layers of any rows."""

    def __init__(self, model: Pretrained, pooled: PooledLayers):
        """Compiles nothing yet."""
        normalizer = model.task.normalizer
        self._model = model.model
        self._map = RowMap(
            lambda network, rows: pooled(network, rows, normalizer),
            model.mesh,
            rows_per_device=ENCODED_AT_A_TIME,
        )

    def __call__(self, rows: Rows) -> dict[str, np.ndarray]:
        """Returns the arrays of rows by name; float32, `token_is_valid` bool."""
        return self._map(self._model, rows)
