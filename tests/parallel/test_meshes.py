"""Guards meshes: every one trains as one device does, holds its share, and exchanges no more."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3ae_tpu.parallel.mesh import by_example, replicated
from m3ae_tpu.parallel.operations import Operations
from m3ae_tpu.parallel.rules import placed, state_shardings
from m3ae_tpu.run.checkpoint import Checkpointer
from m3ae_tpu.run.checkpoint_reader import CheckpointReader
from m3ae_tpu.train.pretraining import init_model, pretraining
from m3ae_tpu.train.step import steps_key
from tests.parallel.meshes import BATCH, CONFIG, MESHES, ONE, compiled, mesh_of, trained


@pytest.mark.parametrize("name", MESHES)
def test_a_mesh_has_the_loss_curve_and_gradients_of_one_device_to_float32_rounding(name):
    (got, gradients), (wanted, expected) = trained(name), trained(ONE)
    for step, (left, right) in enumerate(zip(got, wanted, strict=True)):
        assert left["hidden_words"] == right["hidden_words"]
        # Four times the smallest difference of float32; the test below shows that it is rounding.
        np.testing.assert_allclose(left["loss"], right["loss"], rtol=5e-7, err_msg=step)
    for left, right in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(left - right) <= 1e-5 * np.linalg.norm(right)


def test_muon_makes_whole_matrices_orthogonal_also_where_a_mesh_cuts_them():
    got, wanted = (trained(name, optimizer_name="muon")[0] for name in ("2,2,2", ONE))
    np.testing.assert_allclose(
        [step["loss"] for step in got], [step["loss"] for step in wanted], rtol=5e-7
    )


@pytest.mark.long
@pytest.mark.parametrize("name", MESHES)
def test_in_float64_a_mesh_differs_from_one_device_a_billion_times_less_so_it_is_rounding(name):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        got, gradients = trained(name, dtype="float64")
        wanted, expected = trained(ONE, dtype="float64")
    curves = ([step["loss"] for step in curve] for curve in (got, wanted))
    np.testing.assert_allclose(*curves, rtol=1e-14)
    for left, right in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(left - right) <= 1e-13 * np.linalg.norm(right)


def masks_of(name):
    """Returns the masks of all rows in 20 steps, as the loss draws them on a mesh."""
    mesh = mesh_of(name)
    model = jax.eval_shape(lambda: init_model(CONFIG.model, CONFIG.seed, Operations(mesh)))
    rows = {kind: jnp.arange(CONFIG.batch_size) for kind in BATCH}

    def draw(batch, step):
        key = jax.random.fold_in(steps_key(CONFIG.seed), step)
        return pretraining(CONFIG).masks(model, batch, rows, key)

    places = (by_example(mesh), replicated(mesh))
    draw = jax.jit(draw, in_shardings=places, out_shardings=by_example(mesh))
    return [jax.tree.map(np.asarray, draw(BATCH, step)) for step in range(CONFIG.num_steps)]


@pytest.mark.parametrize("name", MESHES)
def test_every_element_of_the_masks_is_the_same_as_on_one_device(name):
    got, wanted = masks_of(name), masks_of(ONE)
    image, text = wanted[0]["paired"].image, wanted[0]["paired"].text
    assert image.visible.shape == (16, 4)
    assert text.hidden.shape == (16, 18)
    assert 0 < wanted[0]["paired"].drops_text.sum() < 16
    assert not np.array_equal(image.visible, wanted[1]["paired"].image.visible)
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


KINDS = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"


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
    one = compiled(ONE)[1]()
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


@pytest.mark.parametrize(
    ("name", "options"),
    [("2,2,2", {"gradient_sums": "float32"}), ("1,8,1", {"accumulation_steps": 2})],
)
def test_wide_sums_and_accumulation_change_rounding_alone(name, options):
    got, wanted = trained(name, **options)[0], trained(ONE)[0]
    for left, right in zip(got, wanted, strict=True):
        assert left["hidden_words"] == right["hidden_words"]
        np.testing.assert_allclose(left["loss"], right["loss"], rtol=1e-4)
