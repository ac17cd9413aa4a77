"""Frozen features of whole examples: nothing is hidden, the same examples give the same bits."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, UInt8

from m3ae_tpu.batch import Rows
from m3ae_tpu.model.inputs import Inputs, Normalizer, make_inputs
from m3ae_tpu.model.m3ae import M3AE

IMAGE_POOLINGS = {
    "cls": "the class token",
    "mean": "mean of the patches",
    "cls_mean_max": "class token, the middle block's mean, mean and maximum of the patches",
    "cls_quarters": "class token, maximum of the patches in each quarter of the image",
}
"""Ways to make one vector of an image's tokens, described.

Tokens are those after the final norm, unless a block is named. The middle block of n is number
(n + 1) // 2, counted from 1."""

PAIR_POOLINGS = {
    "cls": "the class token",
    "means": "mean of the patches and mean of the words",
    "every_layer": "mean of the embedded words, means of patches and words after every block",
}
"""The same for an image and its caption, encoded together."""

TEXT_POOLINGS = {
    "cls": "the class token",
    "embedding": "mean of the embedded words, before the first block",
    "every_layer": "mean of the embedded words, and of the words after every block",
}
"""The same for a caption that is encoded alone."""

ROWS_PER_DEVICE = 32
"""Rows that a device encodes at a time: a CPU's caches hold their activations, and 64 take a
quarter longer."""

type Pooled = dict[str, Float32[Array, "batch features"]]


def pool_images(
    model: M3AE, images: UInt8[Array, "batch height width 3"], *, normalizer: Normalizer
) -> Pooled:
    """Computes every pooling of `IMAGE_POOLINGS` for images alone, in float32.

    Args:
        model: In any dtype.
        images: RGB bytes; sides are multiples of the model's patch size.
        normalizer: The run's normaliser of images.
    """
    inputs = make_inputs(Rows(images=images), normalizer, jnp.float32)
    layers = model.encode_layers(inputs)
    assert layers.image_mean is not None
    cls, means, middle = layers.cls[-1], layers.image_mean, (len(layers.cls) - 1) // 2
    patches = layers.tokens[-1, :, 1:]
    largest = patches.max(axis=1)
    assert inputs.images is not None
    grid = patches.reshape(len(patches), *model.grid(inputs.images), -1)
    return {
        "cls": _join(cls),
        "mean": _join(means[-1]),
        "cls_mean_max": _join(cls, means[middle], means[-1], largest),
        "cls_quarters": _join(cls, *(each.max(axis=(1, 2)) for each in _quarters(grid))),
    }


def pool_pairs(model: M3AE, rows: Rows, *, normalizer: Normalizer) -> Pooled:
    """Computes every pooling of `PAIR_POOLINGS` for images with captions, in float32.

    Args:
        model: In any dtype, with text parameters.
        rows: Images and token ids.
        normalizer: The run's normaliser of images.
    """
    inputs = make_inputs(rows, normalizer, jnp.float32)
    layers = model.encode_layers(inputs)
    assert layers.image_mean is not None
    assert layers.text_mean is not None
    cls, means, text_means = layers.cls[-1], layers.image_mean, layers.text_mean
    return {
        "cls": _join(cls),
        "means": _join(means[-1], text_means[-1]),
        "every_layer": _join(_mean_embedding(model, inputs), *means, *text_means),
    }


def pool_texts(model: M3AE, rows: Rows, *, normalizer: Normalizer) -> Pooled:
    """Computes every pooling of `TEXT_POOLINGS` for captions alone, in float32.

    Args:
        model: In any dtype, with text parameters.
        rows: Token ids; images count for nothing.
        normalizer: The run's normaliser of images.
    """
    inputs = make_inputs(rows._replace(images=None), normalizer, jnp.float32)
    layers = model.encode_layers(inputs)
    assert layers.text_mean is not None
    embedding, means = _mean_embedding(model, inputs), layers.text_mean
    return {
        "cls": _join(layers.cls[-1]),
        "embedding": _join(embedding),
        "every_layer": _join(embedding, *means),
    }


def _mean_embedding(model: M3AE, inputs: Inputs) -> Float32[Array, "batch width"]:
    """Returns the mean of the words as they enter the first block; 0 without any."""
    assert inputs.is_valid is not None
    words = model.embed(inputs)[0][:, -inputs.is_valid.shape[1] :].astype(jnp.float32)
    weights = inputs.is_valid.astype(jnp.float32)
    total = jnp.einsum("btd,bt->bd", words, weights)
    return total / jnp.maximum(weights.sum(axis=1, keepdims=True), jnp.float32(1))


def thumbnails(
    images: UInt8[Array, "batch height width 3"], side: int = 32
) -> Float32[Array, "batch features"]:
    """Returns small images as features on a scale of 0 to 1: a baseline without an encoder."""
    shape = (images.shape[0], side, side, 3)
    pixels = jax.image.resize(images.astype(jnp.float32) / 255, shape, "linear", antialias=True)
    return pixels.reshape(images.shape[0], -1)


def _quarters(grid: Array) -> list[Array]:
    """Returns the quarters [batch, rows, columns, width]; a middle row or column is in two."""
    height, width = grid.shape[1:3]
    rows = slice((height + 1) // 2), slice(height // 2, None)
    columns = slice((width + 1) // 2), slice(width // 2, None)
    return [grid[:, of_rows, of_columns] for of_rows in rows for of_columns in columns]


def _join(*features: Array) -> Array:
    return jnp.concatenate([each.astype(jnp.float32) for each in features], axis=-1)
