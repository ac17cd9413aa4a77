"""Where a word looks in the image: attention from text tokens to patches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32, UInt8

from m3ae_tpu.config import DataConfig
from m3ae_tpu.kernels.attention import reference
from m3ae_tpu.model.m3ae import M3AE


def word_attention(
    model: M3AE,
    images: UInt8[np.ndarray, "examples height width 3"],
    text: Int32[np.ndarray, "examples length"],
    text_valid: Bool[np.ndarray, "examples length"],
    data: DataConfig,
) -> Float32[np.ndarray, "examples length rows columns"]:
    """Computes how each text token spreads its attention over the patches in the encoder's last
    block.

    Nothing is hidden. Weights are the mean of the heads, and of each token sum to 1 over the
    patches: what it pays to other words is left out.

    Args:
        model: One with text parameters.
        images: RGB bytes.
        text: Piece ids.
        text_valid: True for words; rows of padding are defined but mean nothing.
        data: Image mean and standard deviation count.
    """
    return np.asarray(
        _attend(model, images, text, text_valid, mean=data.image_mean, std=data.image_std)
    )


@functools.partial(jax.jit, static_argnames=("mean", "std"))
def _attend(model: M3AE, images: Array, text: Array, text_valid: Array, *, mean, std) -> Array:
    pixels = normalize_images(images, mean, std, jnp.float32)
    x, valid = model.embed(pixels, text, text_valid)
    earlier = jax.tree.map(lambda leaf: leaf[:-1], model.encoder.blocks)
    last = jax.tree.map(lambda leaf: leaf[-1], model.encoder.blocks)
    x, _ = jax.lax.scan(lambda x, block: (block(x, valid), None), x, earlier)
    weights = reference.attention_weights(last.project_qkv(x), valid, last.num_heads).mean(axis=1)
    rows, columns = model.grid(pixels)
    first_word = 1 + rows * columns
    to_patches = weights[:, first_word:, 1:first_word]
    to_patches = to_patches / to_patches.sum(axis=2, keepdims=True)
    return to_patches.reshape(*text.shape, rows, columns).astype(jnp.float32)
