"""A trained model as other programs compute it: in float32, on one device, without kernels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.model.modality import resized_positions
from m3ae_tpu.model.positions import image_positions
from m3ae_tpu.pretrained.pretrained import Pretrained
from m3ae_tpu.run.checkpoint import named_arrays
from m3ae_tpu.weights.parameters import Arrays


def plain_model(pretrained: Pretrained) -> M3AE:
    """Returns the model in float32 on the reference operations, with NumPy's arrays."""
    arrays = float32_arrays(pretrained)
    return with_arrays(plain_shapes(pretrained), arrays)


def plain_shapes(pretrained: Pretrained) -> M3AE:
    """Returns the shapes of the model in float32 on the reference operations."""
    config = dataclasses.replace(
        pretrained.config.model, compute_dtype="float32", parameter_dtype="float32", remat=False
    )
    return jax.eval_shape(lambda: M3AE(config, key=jax.random.key(0)))


def with_arrays(shapes: M3AE, arrays: dict[str, jax.Array] | Arrays) -> M3AE:
    """Returns a model with arrays, by dotted name, in place of its shapes."""
    leaves = [arrays[name] for name in named_arrays(shapes)]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def float32_arrays(pretrained: Pretrained) -> Arrays:
    """Returns the model's parameters in float32, by dotted name."""
    return {
        name: np.asarray(leaf).astype(np.float32, copy=False)
        for name, leaf in named_arrays(pretrained.model).items()
    }


def image_arrays(pretrained: Pretrained) -> Arrays:
    """Returns the parameters that images need, as other libraries keep them.

    Those have no type vectors: the encoder's is added to the bias of the patches' embedding, the
    decoder's to its position codes of patches. Position codes are always there, for the image size
    of the config, and 0 for a class token that has none.
    """
    arrays = float32_arrays(pretrained)
    arrays = {name: array for name, array in arrays.items() if not name.startswith("text.")}
    config = pretrained.config
    side = config.data.image_size // config.model.patch_size
    grid = (side, side)
    for stack, prefix in (("encoder", ""), ("decoder", "decoder_")):
        kind = arrays.pop(f"image.{stack}_type", None)
        if kind is None:
            continue
        codes, cls = f"image.{prefix}positions", f"{prefix}cls_position"
        if codes in arrays:
            arrays[codes] = np.asarray(resized_positions(jnp.asarray(arrays[codes]), grid))
        else:
            arrays[codes] = image_positions(grid, len(kind)).astype(np.float32)
            arrays[cls] = np.zeros(len(kind), np.float32)
        if kind.any():  # Imported models have zeros: their values keep every bit.
            added_to = "image.embedding.bias" if stack == "encoder" else codes
            arrays[added_to] = arrays[added_to] + kind
    return arrays
