"""Guards Muon: which parameters it takes, and its updates step by step, against float64."""

import dataclasses

import equinox as eqx
import jax
import numpy as np
import optax
import pytest

from m3ae_tpu.configs import debug
from m3ae_tpu.run.checkpoint_reader import named_arrays
from m3ae_tpu.train.optimizer import gradient_transformation, is_matrix
from m3ae_tpu.train.pretraining import init_model

RATE = 0.01
CONFIG = dataclasses.replace(debug.CONFIG.optimizer, weight_decay=0.5, clip_norm=0.0)
MATRICES = {
    f"{stack}.blocks.{layer}.kernel"
    for stack in ("encoder", "decoder")
    for layer in ("attention_in", "attention_out", "mlp_in", "mlp_out")
} | {"decoder_input.kernel"}


def two_updates(name):
    """Returns the model, two gradients and two updates by parameter."""
    model = init_model(debug.CONFIG.model, 0)
    keys = iter(jax.random.split(jax.random.key(1), 200))
    parameters, _ = eqx.partition(model, eqx.is_array)

    def draw(leaf):
        return jax.random.normal(next(keys), leaf.shape, leaf.dtype)

    gradients = [jax.tree.map(draw, parameters) for _ in range(2)]
    config = dataclasses.replace(CONFIG, name=name)
    optimizer = gradient_transformation(config, optax.constant_schedule(RATE), is_matrix)
    state, updates = jax.jit(optimizer.init)(parameters), []
    with jax.numpy_dtype_promotion("standard"):
        for each in gradients:
            update, state = jax.jit(optimizer.update)(each, state, parameters)
            updates.append(named_arrays(update))
    return named_arrays(model), [named_arrays(each) for each in gradients], updates


@pytest.fixture(scope="module")
def muon():
    return two_updates("muon")


def newton_schulz(matrix):
    """Jordan's iteration as it is published, with singular values instead of products."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / np.linalg.norm(values)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return (left * values) @ right


def matrices_of(name, array):
    """Returns the matrices of a parameter one by one: layers, and queries, keys and values."""
    if ".blocks." not in name:
        return [array]
    if name.endswith("attention_in.kernel"):
        array = array.transpose(0, 2, 1, 3)
    return list(array.reshape(-1, *array.shape[-2:]))


@pytest.mark.parametrize("name", sorted(MATRICES))
def test_matrices_within_the_network_move_along_their_orthogonal_momentum(muon, name):
    model, gradients, updates = muon
    first, second = (matrices_of(name, np.asarray(each[name], np.float64)) for each in gradients)
    # Nesterov's look-ahead of means without bias (Dozat 2016), to a factor that has no effect.
    mean, last = 0.95 / (1 - 0.95**3), 1 / (1 - 0.95**2)
    both = zip(first, second, strict=True)
    looked_ahead = [first, [mean * (0.95 * a + b) + last * b for a, b in both]]
    for step, momenta in enumerate(looked_ahead):
        wanted = [
            -RATE * (0.4 * max(each.shape) ** 0.5 * newton_schulz(each) + 0.5 * value)
            for each, value in zip(momenta, matrices_of(name, model[name]), strict=True)
        ]
        got = matrices_of(name, updates[step][name])
        for left, right in zip(got, wanted, strict=True):
            assert np.linalg.norm(left - right) <= 1e-4 * np.linalg.norm(right)


def test_all_other_parameters_have_the_updates_of_adamw(muon):
    model, _, updates = muon
    _, _, by_adamw = two_updates("adamw")
    assert model.keys() >= MATRICES
    for got, wanted in zip(updates, by_adamw, strict=True):
        for name in model.keys() - MATRICES:
            np.testing.assert_array_equal(got[name], wanted[name], err_msg=name)
