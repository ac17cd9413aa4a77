"""Attention of words to the patches of an image, and of patches to words."""

import functools

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32

from m3ae_tpu.batch import Rows
from m3ae_tpu.kernels.attention import reference
from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.parallel.row_map import RowMap
from m3ae_tpu.pretrained.task import ReconstructionTask


def word_attention(
    model: M3AE, rows: Rows, task: ReconstructionTask, mesh: Mesh
) -> Float32[np.ndarray, "examples length rows columns"]:
    """Computes how each token of a caption spreads its attention over the patches of its image.

    Takes the encoder's last block with nothing hidden, and the mean of its heads. The weights of a
    token are scaled to sum to 1 over the patches: its attention to words is left out. Those of
    padding have no meaning.

    Args:
        model: The run's model, with text parameters.
        rows: Images and token ids.
        task: The run's task.
        mesh: The model's.
    """
    attend = RowMap(functools.partial(_attention_to_patches, task=task), mesh)
    return attend(model, rows).astype(np.float32)


def patch_attention(
    model: M3AE, rows: Rows, task: ReconstructionTask, mesh: Mesh
) -> Float32[np.ndarray, "examples patches length"]:
    """Computes how each patch of an image spreads its attention over the words of its caption.

    As `word_attention`, the other way round: the weights of a patch sum to 1 over the words, and
    padding gets none. A caption without words has weights of 0.
    """
    attend = RowMap(functools.partial(_attention_to_words, task=task), mesh)
    return attend(model, rows).astype(np.float32)


def _attention_to_patches(
    model: M3AE, rows: Rows, *, task: ReconstructionTask
) -> Float[Array, "batch length rows columns"]:
    weights, grid = _attention(model, rows, task)
    first_word = 1 + grid[0] * grid[1]
    to_patches = weights[:, first_word:, 1:first_word]
    to_patches = to_patches / to_patches.sum(axis=2, keepdims=True)
    return to_patches.reshape(*to_patches.shape[:2], *grid)


def _attention_to_words(
    model: M3AE, rows: Rows, *, task: ReconstructionTask
) -> Float[Array, "batch patches length"]:
    weights, grid = _attention(model, rows, task)
    first_word = 1 + grid[0] * grid[1]
    to_words = weights[:, 1:first_word, first_word:]
    return to_words / jnp.maximum(to_words.sum(axis=2, keepdims=True), 1e-30)


def _attention(
    model: M3AE, rows: Rows, task: ReconstructionTask
) -> tuple[Float[Array, "batch tokens tokens"], tuple[int, int]]:
    """Returns the last block's weights of all tokens, mean of heads, and the grid of patches."""
    inputs = task.make_inputs(rows)
    assert inputs.images is not None
    x, is_valid = model.embed(inputs)
    qkv = model.encoder.last_qkv(x, is_valid)
    num_heads = model.encoder.blocks.num_heads
    weights = reference.attention_weights(qkv, is_valid, num_heads).mean(axis=1)
    return weights, model.grid(inputs.images)
