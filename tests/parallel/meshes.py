"""Steps of a small model on meshes of eight simulated devices, and on one, for several tests."""

import dataclasses
import functools
from typing import Literal

import jax
import numpy as np

from m3ae_tpu.batch import batch_shapes, mixture, random_batch
from m3ae_tpu.config import Dtype, GradientSums, MeshConfig
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
    masking=dataclasses.replace(debug.CONFIG.masking, text_dropout=0.5),
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
ONE = "1,1,1"


def mesh_of(name):
    return make_mesh(MESHES.get(name, MeshConfig()), jax.devices()[:1] if name == ONE else None)


@functools.cache
def compiled(
    name,
    gradient_sums: GradientSums = "compute_dtype",
    accumulation_steps=1,
    dtype: Dtype = "float32",
    optimizer_name: Literal["adamw", "muon"] = "adamw",
):
    """Returns a mesh, the jitted initial state, and the compiled step."""
    mesh = mesh_of(name)
    optimizer, _ = make_optimizer(
        dataclasses.replace(CONFIG.optimizer, name=optimizer_name),
        batch_size=CONFIG.batch_size,
        num_steps=CONFIG.num_steps,
    )
    model = dataclasses.replace(CONFIG.model, compute_dtype=dtype, parameter_dtype=dtype)

    def init():
        operations = Operations(mesh, gradient_sums)
        return init_state(init_model(model, CONFIG.seed, operations), optimizer)

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
