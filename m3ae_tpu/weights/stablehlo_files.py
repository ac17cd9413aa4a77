"""StableHLO files of the encoder: programs that JAX runs without this package."""

import datetime
import importlib.metadata
import json
import pathlib
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from m3ae_tpu.batch import Rows
from m3ae_tpu.model.inputs import make_inputs
from m3ae_tpu.model.m3ae import M3AE, Features
from m3ae_tpu.pretrained.pretrained import Pretrained
from m3ae_tpu.weights.comparison import (
    BATCH_SIZES,
    Comparison,
    compare_features,
    features_of,
    random_rows,
)
from m3ae_tpu.weights.parameters import Arrays
from m3ae_tpu.weights.plain_model import float32_arrays, plain_model, plain_shapes, with_arrays
from m3ae_tpu.weights.uses import Use, uses_of

PLATFORMS = ("cpu", "cuda", "tpu")
VERSIONS = "stablehlo.json"


def write_stablehlo(folder: pathlib.Path, pretrained: Pretrained) -> list[Comparison]:
    """Writes a program for each use of the model, and compares its outputs.

    A program takes the weights, a dict as `model.safetensors` has them, and then the inputs of its
    use: images, uint8 [batch, size, size, 3]; text_ids, int32, and is_valid, bool [batch, length].
    It returns a dict of features. Batches may have any size; images and texts have one.
    """
    weights, model = float32_arrays(pretrained), plain_model(pretrained)
    comparisons, described = [], {}
    for use in uses_of(pretrained):
        exported = _export(pretrained, use, weights)
        path = folder / f"{use.name}.stablehlo"
        path.write_bytes(exported.serialize())
        described[path.name] = {
            "inputs": ["weights", *_inputs(pretrained, use)],
            "calling_convention": exported.calling_convention_version,
        }
        comparisons += _compare(path, model, pretrained, use, weights)
    versions = {
        "date": datetime.date.today().isoformat(),
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "platforms": PLATFORMS,
        "programs": described,
    }
    (folder / VERSIONS).write_text(json.dumps(versions, indent=2) + "\n")
    return comparisons


def _inputs(pretrained: Pretrained, use: Use) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a program's inputs, for any batch."""
    (batch,) = jax.export.symbolic_shape("batch")
    size, length = pretrained.config.data.image_size, pretrained.text_length
    shapes = {}
    if use.has_image:
        shapes["images"] = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)
    if use.has_text:
        shapes["text_ids"] = jax.ShapeDtypeStruct((batch, length), jnp.int32)
        shapes["is_valid"] = jax.ShapeDtypeStruct((batch, length), jnp.bool_)
    return shapes


def _export(pretrained: Pretrained, use: Use, weights: Arrays) -> jax.export.Exported:
    shapes, normalizer = plain_shapes(pretrained), pretrained.task.normalizer
    inputs = _inputs(pretrained, use)

    def encode(weights: dict[str, jax.Array], *arrays: jax.Array) -> dict[str, jax.Array]:
        rows = Rows(**dict(zip(inputs, arrays, strict=True)))
        model = with_arrays(shapes, weights)
        features: Features = model.encode(make_inputs(rows, normalizer, jnp.float32))
        return {name: array for name, array in features._asdict().items() if array is not None}

    abstract = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in weights.items()
    }
    with jax.default_matmul_precision("highest"):
        return jax.export.export(jax.jit(encode), platforms=PLATFORMS)(abstract, *inputs.values())


def _compare(
    path: pathlib.Path, model: M3AE, pretrained: Pretrained, use: Use, weights: Arrays
) -> list[Comparison]:
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    comparisons = []
    for batch in BATCH_SIZES:
        rows = random_rows(pretrained, batch, has_image=use.has_image, has_text=use.has_text)
        wanted = features_of(model, pretrained.task.normalizer, rows)
        given = [array for array in rows._asdict().values() if array is not None]
        outputs: Any = exported.call(weights, *given)
        comparisons.append(compare_features(f"{path.name}, batch of {batch}", outputs, wanted))
    return comparisons
