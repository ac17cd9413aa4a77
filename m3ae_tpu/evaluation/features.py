"""Frozen features of whole examples: nothing is hidden, nothing is random, the same bits every
time.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32, UInt8

from m3ae_tpu.model.inputs import Inputs, Normalizer
from m3ae_tpu.model.m3ae import M3AE

IMAGE_POOLINGS = {
    "cls": "the class token",
    "mean": "mean of the patches",
    "mean_max": "mean and largest value of the patches",
    "layers": "mean of the patches after each block from the middle on",
    "cls_mean_max": "class token, the middle block's mean, mean and largest value of the patches",
}
"""How a image's tokens become one vector. Where no block is named, the last one with the final norm
is meant; the middle block of n is number (n + 1) // 2, counted from 1."""

PAIR_POOLINGS = {
    "cls": "the class token",
    "means": "mean of the patches and mean of the words",
    "layers": "means of the patches and of the words after each block from the middle on",
    "all": "class token, both means of the middle block, means and largest values of patches and words",
}
"""The same for a image and its caption, encoded together."""

type Poolings = dict[str, Float32[np.ndarray, "examples features"]]


def image_features(
    model: M3AE,
    images: UInt8[np.ndarray, "examples height width 3"],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int = 64,
) -> Poolings:
    """Computes every pooling of `IMAGE_POOLINGS` for images alone.

    Args:
        model: In any dtype; features are float32.
        images: RGB bytes; sides are multiples of the model's patch size.
        mean: Of each channel, on a scale of 0 to 1, as in pre-training.
        std: Like `mean`.
        batch_size: Examples at a time; the last batch is filled up, so one shape is compiled.
    """
    pool = functools.partial(_pool_images, model, mean=tuple(mean), std=tuple(std))
    return _in_batches(pool, (images,), batch_size)


def pair_features(
    model: M3AE,
    images: UInt8[np.ndarray, "examples height width 3"],
    text: Int32[np.ndarray, "examples length"],
    text_valid: Bool[np.ndarray, "examples length"],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int = 64,
) -> Poolings:
    """Computes every pooling of `PAIR_POOLINGS` for images with captions, encoded together.

    Args:
        model: One with text parameters.
        images: As for `image_features`.
        text: Piece ids, padded at the end.
        text_valid: True for words, False for padding.
        mean: As for `image_features`.
        std: As for `image_features`.
        batch_size: As for `image_features`.
    """
    pool = functools.partial(_pool_pairs, model, mean=tuple(mean), std=tuple(std))
    return _in_batches(pool, (images, text, text_valid), batch_size)


def raw_pixels(
    images: UInt8[np.ndarray, "examples height width 3"], side: int = 32
) -> Float32[np.ndarray, "examples features"]:
    """Returns colour thumbnails as features on a scale of 0 to 1: what a probe reaches without any
    encoder.
    """
    shape = (images.shape[0], side, side, 3)
    return np.asarray(_resize(images, shape)).reshape(images.shape[0], -1)


@functools.partial(jax.jit, static_argnames="shape")
def _resize(images: Array, shape: tuple[int, ...]) -> Array:
    return jax.image.resize(images.astype(jnp.float32) / 255, shape, "linear", antialias=True)


@functools.partial(jax.jit, static_argnames=("mean", "std"))
def _pool_images(
    model: M3AE, images: Array, *, mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[str, Array]:
    pixels = Normalizer(mean, std)(images, jnp.float32)
    layers = model.encode_layers(Inputs(pixels))
    assert layers.image_mean is not None
    first = _middle(layers.cls.shape[0])
    patches = layers.tokens[-1, :, 1:].astype(jnp.float32)
    cls, means, largest = layers.cls[-1], layers.image_mean, patches.max(axis=1)
    return {
        "cls": _join(cls),
        "mean": _join(means[-1]),
        "mean_max": _join(means[-1], largest),
        "layers": _join(*means[first:]),
        "cls_mean_max": _join(cls, means[first], means[-1], largest),
    }


@functools.partial(jax.jit, static_argnames=("mean", "std"))
def _pool_pairs(
    model: M3AE,
    images: Array,
    text: Array,
    text_valid: Array,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> dict[str, Array]:
    pixels = Normalizer(mean, std)(images, jnp.float32)
    layers = model.encode_layers(Inputs(pixels, text, text_valid))
    assert layers.image_mean is not None
    assert layers.text_mean is not None
    first = _middle(layers.cls.shape[0])
    num_patches = layers.tokens.shape[2] - 1 - text.shape[1]
    tokens = layers.tokens[-1].astype(jnp.float32)
    patches, words = tokens[:, 1 : 1 + num_patches], tokens[:, 1 + num_patches :]
    lowest = jnp.finfo(jnp.float32).min
    largest_word = jnp.where(text_valid[..., None], words, lowest).max(axis=1)
    largest_word = jnp.where(text_valid.any(axis=1, keepdims=True), largest_word, 0.0)
    cls, means, text_means = layers.cls[-1], layers.image_mean, layers.text_mean
    return {
        "cls": _join(cls),
        "means": _join(means[-1], text_means[-1]),
        "layers": _join(*means[first:], *text_means[first:]),
        "all": _join(
            cls,
            means[first],
            text_means[first],
            means[-1],
            text_means[-1],
            patches.max(axis=1),
            largest_word,
        ),
    }


def _middle(num_layers: int) -> int:
    return (num_layers - 1) // 2


def _join(*parts: Array) -> Array:
    return jnp.concatenate([part.astype(jnp.float32) for part in parts], axis=-1)


def _in_batches(
    pool: Callable[..., dict[str, Array]], arrays: tuple[np.ndarray, ...], batch_size: int
) -> Poolings:
    """Applies `pool` to `batch_size` rows at a time."""
    results = []
    for start in range(0, len(arrays[0]), batch_size):
        rows = [array[start : start + batch_size] for array in arrays]
        num_rows = len(rows[0])
        padding = batch_size - num_rows
        padded = [
            np.concatenate([row, np.zeros((padding, *row.shape[1:]), row.dtype)]) for row in rows
        ]
        results.append((pool(*padded), num_rows))
    return {
        name: np.concatenate([np.asarray(result[name])[:num_rows] for result, num_rows in results])
        for name in results[0][0]
    }
