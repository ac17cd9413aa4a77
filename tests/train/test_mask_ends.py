"""Guards the ends of the mask ratios: the loss of nothing hidden, or of everything."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3ae_tpu.batch import batch_shapes, mixture, random_batch
from m3ae_tpu.config import (
    DataConfig,
    MaskingConfig,
    ModelConfig,
    PretrainConfig,
    SourceConfig,
    TransformerConfig,
)
from m3ae_tpu.parallel.mesh import make_mesh
from m3ae_tpu.parallel.operations import Operations
from m3ae_tpu.report.contact_sheet import draw_contact_sheet
from m3ae_tpu.train.pretraining import init_model, pretraining

SMALL = TransformerConfig(num_layers=1, width=16, num_heads=16)
KINDS = ("paired", "image", "text")


def run_of(*, kinds=KINDS, patch_size=8, text_length=4, **masking):
    sources = tuple(SourceConfig(kind=kind, text_length=text_length) for kind in kinds)
    model = ModelConfig(
        patch_size=patch_size,
        vocab_size=30,
        encoder=SMALL,
        decoder=SMALL,
        compute_dtype="float32",
    )
    config = PretrainConfig(
        batch_size=len(kinds),  # One row of each kind.
        model=model,
        masking=MaskingConfig(**masking),
        data=DataConfig(sources=sources, image_size=16),
    )
    shapes = batch_shapes(mixture(config.data, config.batch_size), config.data.image_size)
    return config, random_batch(shapes, vocab_size=30)


def loss_and_gradients(config, batch, operations=Operations()):
    model = init_model(config.model, 0, operations)
    rows = {kind: jnp.zeros(1, jnp.int32) for kind in batch}
    loss = jax.jit(jax.value_and_grad(pretraining(config).loss, has_aux=True))
    (value, metrics), gradients = loss(model, batch, rows, jax.random.key(0))
    means = {name: float(mean) for name, mean in metrics.means.items()}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, means, gradients)))
    return means, metrics.counts, gradients


def largest(gradients):
    return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("text_positions", ["valid", "all"])
@pytest.mark.parametrize("name", ["image", "text"])
def test_a_modality_with_nothing_hidden_adds_no_loss_and_no_gradient_of_its_head(
    name, text_positions
):
    config, batch = run_of(**{f"{name}_mask_ratio": 0.0, "text_positions": text_positions})
    means, counts, gradients = loss_and_gradients(config, batch)
    other = "text" if name == "image" else "image"
    assert [means[f"{prefix}{name}_loss"] for prefix in ("", "unpaired_")] == [0, 0]
    assert min(means[f"{prefix}{other}_loss"] for prefix in ("", "unpaired_")) > 0
    assert counts["hidden_patches" if name == "image" else "hidden_words"] == 0
    assert largest((getattr(gradients, name).head, getattr(gradients, name).mask_token)) == 0
    assert largest(getattr(gradients, other).head) > 0


def test_with_nothing_visible_mask_tokens_alone_are_decoded():
    config, batch = run_of(image_mask_ratio=1.0, text_mask_ratio=1.0)
    means, counts, gradients = loss_and_gradients(config, batch)
    assert min(means[f"{name}_loss"] for name in ("image", "text")) > 0
    assert counts["hidden_patches"] == 2 * 4
    assert largest((gradients.image.embedding, gradients.text.embedding)) == 0
    assert largest((gradients.image.mask_token, gradients.text.mask_token)) > 0


@pytest.mark.parametrize(
    "options",
    [
        {"kinds": ("paired", "image"), "image_mask_ratio": 0.99},
        {"kinds": ("paired", "image"), "patch_size": 16},
        {"kinds": ("paired", "image"), "patch_size": 16, "image_mask_ratio": 0.0},
        {"kinds": ("paired", "text"), "text_length": 1},
        {"kinds": ("paired", "text"), "text_length": 1, "text_mask_ratio": 0.01},
        {"kinds": ("paired", "image"), "image_predicted_share": 1e-300},
        {"kinds": ("image",), "image_mask_ratio": 1.0},
        {"kinds": ("text",), "text_mask_ratio": 0.0},
    ],
)
def test_few_tokens_are_no_obstacle(options):
    config, batch = run_of(**options)
    loss_and_gradients(config, batch)
    sheet = draw_contact_sheet(
        batch, None, seed=0, masking=config.masking, patch_size=config.model.patch_size
    )
    assert sheet.height > 0


def test_devices_share_rows_without_hidden_words():
    config, batch = run_of(kinds=("paired",), text_mask_ratio=0.0)
    mesh = make_mesh()
    batch = jax.tree.map(lambda array: np.repeat(array, mesh.size, axis=0), batch)
    model = init_model(config.model, 0, Operations(mesh))
    rows = {"paired": jnp.arange(mesh.size, dtype=jnp.int32)}
    loss = jax.jit(pretraining(config).loss)
    assert loss(model, batch, rows, jax.random.key(0))[1].means["text_loss"] == 0
