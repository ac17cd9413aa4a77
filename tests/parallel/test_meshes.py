"""Guards meshes: every one trains as one device does, holds its share, and exchanges no more."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from m3ae_tpu.batch import batch_shapes, mixture, random_batch
from m3ae_tpu.config import MeshConfig
from m3ae_tpu.configs import debug
from m3ae_tpu.parallel.mesh import by_example, make_mesh
from m3ae_tpu.parallel.operations import Operations
from m3ae_tpu.parallel.rules import state_shardings
from m3ae_tpu.train.optimizer import make_optimizer
from m3ae_tpu.train.pretraining import init_model, pretraining
from m3ae_tpu.train.step import compile_step, init_state, steps_key

CONFIG = dataclasses.replace(
    debug.CONFIG,
    num_steps=20,
    model=dataclasses.replace(
        debug.CONFIG.model,
        vocab_size=64,
        encoder=dataclasses.replace(debug.CONFIG.model.encoder, width=64),
    ),
)
SHAPES = batch_shapes(mixture(CONFIG.data, CONFIG.batch_size), CONFIG.data.image_size)
BATCH = random_batch(SHAPES, vocab_size=CONFIG.model.vocab_size)
MESHES = {
    "8,1,1": MeshConfig(),
    "1,8,1": MeshConfig(data=1, fsdp=8),
    "2,2,2": MeshConfig(fsdp=2, tensor=2),
    "4,1,2": MeshConfig(tensor=2),
}


@functools.cache
def compiled(name, gradient_sums="compute_dtype", accumulation_steps=1):
    """Returns a mesh, the jitted initial state, and the compiled step."""
    one = name == "1,1,1"
    mesh = make_mesh(MESHES.get(name, MeshConfig()), jax.devices()[:1] if one else None)
    optimizer, _ = make_optimizer(
        CONFIG.optimizer, batch_size=CONFIG.batch_size, num_steps=CONFIG.num_steps
    )

    def init():
        operations = Operations(mesh, gradient_sums)
        return init_state(init_model(CONFIG.model, CONFIG.seed, operations), optimizer)

    shardings = state_shardings(jax.eval_shape(init), mesh)
    step = compile_step(
        mesh,
        shardings,
        loss=pretraining(CONFIG).loss,
        optimizer=optimizer,
        key=steps_key(CONFIG.seed),
        accumulation_steps=accumulation_steps,
    )
    init = jax.jit(init, out_shardings=shardings)
    return mesh, init, step.lower(jax.eval_shape(init), SHAPES).compile()


@functools.cache
def trained(name, **options):
    """Returns the metrics of 20 steps, and the first moment after the first."""
    mesh, init, step = compiled(name, **options)
    batch, state = jax.device_put(BATCH, by_example(mesh)), init()
    curve, gradients = [], None
    for _ in range(CONFIG.num_steps):
        state, metrics = step(state, batch)
        curve.append(metrics.means | metrics.counts)
        if gradients is None:
            moments = jax.tree.leaves(state.optimizer_state, is_leaf=is_adam)
            gradients = jax.tree.map(np.asarray, next(filter(is_adam, moments)).mu)
    return jax.tree.map(np.asarray, curve), gradients


def is_adam(state):
    return hasattr(state, "mu")


@pytest.mark.parametrize("name", MESHES)
def test_a_mesh_has_the_loss_curve_masks_and_gradients_of_one_device(name):
    (got, gradients), (wanted, expected) = trained(name), trained("1,1,1")
    for step, (left, right) in enumerate(zip(got, wanted, strict=True)):
        assert left["hidden_words"] == right["hidden_words"]  # Counted from the masks drawn.
        np.testing.assert_allclose(left["loss"], right["loss"], rtol=2e-5, err_msg=step)
    np.testing.assert_allclose(got[0]["loss"], wanted[0]["loss"], rtol=1e-6)
    for left, right in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(left - right) <= 1e-5 * np.linalg.norm(right)
