"""Guards meshes: every one trains as one device does, holds its share, and exchanges no more."""

import dataclasses
import functools
import math
import re

import jax
import numpy as np
import pytest

from m3ae_tpu.batch import batch_shapes, mixture, random_batch
from m3ae_tpu.config import GradientSums, MeshConfig
from m3ae_tpu.configs import debug
from m3ae_tpu.parallel.mesh import by_example, make_mesh
from m3ae_tpu.parallel.operations import Operations
from m3ae_tpu.parallel.rules import placed, state_shardings
from m3ae_tpu.run.checkpoint import Checkpointer
from m3ae_tpu.run.checkpoint_reader import CheckpointReader
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
def compiled(name, gradient_sums: GradientSums = "compute_dtype", accumulation_steps=1):
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


KINDS = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"


def collectives(text):
    """Returns kind, sizes and scope of each collective of a compiled program."""
    found = []
    for line in text.splitlines():
        if match := re.search(rf"= (\S+|\(.*?\)) ({KINDS})(?:-start)?\(", line):
            arrays = re.findall(r"\w+\[([\d,]*)\]", match[1])
            sizes = [math.prod(map(int, filter(None, array.split(",")))) for array in arrays]
            scope = re.search(r'op_name="([^"]*)"', line)
            found.append((match[2], sizes, scope[1] if scope else ""))
    return found


def matrices(tensor):
    """Returns the sizes of a layer's matrices, once gathered, of both stacks."""
    stacks = CONFIG.model.encoder, CONFIG.model.decoder
    return sorted(k * stack.width**2 // tensor for stack in stacks for k in (3, 1, 4, 4))


@pytest.mark.parametrize("name", MESHES)
def test_devices_exchange_what_the_layout_calls_for(name):
    _, fsdp, tensor = map(int, name.split(","))
    text = compiled(name)[2].as_text()
    found = collectives(text)
    in_loop = [(kind, sizes) for kind, sizes, scope in found if "while/body" in scope]
    gathered = sorted(sizes[0] for kind, sizes in in_loop if kind == "all-gather")
    scattered = sorted(sizes[0] * fsdp for kind, sizes in in_loop if kind == "reduce-scatter")
    kinds = {kind for kind, *_ in found}
    if fsdp == 1:
        assert kinds == {"all-reduce"}
    else:
        # Once forward and once backward; each gradient is scattered.
        assert gathered == sorted(2 * matrices(tensor))
        assert scattered == matrices(tensor)
        assert kinds == {"all-reduce", "all-gather", "reduce-scatter", "all-to-all"}
        # Vectors of words go to the devices that compute their rows.
        assert all("embed" in scope for kind, _, scope in found if kind == "all-to-all")
    summed = [size for kind, sizes, _ in found if kind == "all-reduce" for size in sizes]
    rows = CONFIG.batch_size * tensor // 8
    for tokens, stack in ((11, CONFIG.model.encoder), (41, CONFIG.model.decoder)):
        # Twice a block and direction.
        assert summed.count(rows * tokens * stack.width) == (4 if tensor > 1 else 0)


@pytest.mark.parametrize("name", MESHES)
def test_a_step_writes_into_the_arrays_that_it_is_given(name):
    analysis = compiled(name)[2].memory_analysis()
    metrics = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    assert metrics <= 64 * 32  # A few scalars, each of which may be padded.


@pytest.mark.parametrize("name", ["1,8,1", "2,2,2"])
def test_every_device_holds_its_share_from_the_start(name):
    _, init, _ = compiled(name)
    text = init.lower().compile().as_text() or ""
    assert not re.search(rf" ({KINDS})(-start)?\(", text)
    state = init()
    one = compiled("1,1,1")[1]()
    for leaf, whole in zip(jax.tree.leaves(state), jax.tree.leaves(one), strict=True):
        np.testing.assert_array_equal(leaf, whole)
    shards = [leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state)]
    assert sum(shards) < 0.3 * sum(leaf.nbytes for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("name", ["1,1,1", "8,1,1", "1,8,1"])
def test_a_checkpoint_of_one_mesh_is_restored_onto_another(tmp_path, name):
    state = compiled("2,2,2")[1]()
    checkpointer = Checkpointer(tmp_path, CONFIG.checkpoint)
    checkpointer.save(1, state, {}, {})
    checkpointer.close()
    mesh, init, _ = compiled(name)
    abstract = jax.eval_shape(init)
    wanted = placed(abstract, state_shardings(abstract, mesh))
    restored, *_ = CheckpointReader(tmp_path).restore(wanted)
    for before, after, place in zip(*map(jax.tree.leaves, (state, restored, wanted)), strict=True):
        np.testing.assert_array_equal(before, after)
        assert after.sharding == place.sharding


@pytest.mark.parametrize("name", ["1,8,1", "2,2,2"])
@pytest.mark.parametrize("options", [{"gradient_sums": "float32"}, {"accumulation_steps": 2}])
def test_wide_sums_and_accumulation_change_rounding_alone(name, options):
    got, wanted = trained(name, **options)[0], trained("1,1,1")[0]
    for left, right in zip(got, wanted, strict=True):
        assert left["hidden_words"] == right["hidden_words"]
        np.testing.assert_allclose(left["loss"], right["loss"], rtol=1e-4)
