"""A small training state of arrays of several kinds, for tests of checkpoints."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

MESH = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
REPLICATED = jax.sharding.NamedSharding(MESH, jax.sharding.PartitionSpec())
BY_ROW = jax.sharding.NamedSharding(MESH, jax.sharding.PartitionSpec("data"))
RUN = {"config": {"seed": 3, "rate": 1.5e-4}, "tokenizer_sha256": "ab", "versions": {"jax": "0"}}


class Model(eqx.Module):
    kernel: Array
    bias: Array
    text_head: Array | None


class State(eqx.Module):
    step: Array
    model: Model
    optimizer_state: PyTree


def make_state(step, *, sharding=REPLICATED):
    keys = jax.random.split(jax.random.key(step), 2)
    kernel = jax.random.normal(keys[0], (16, 24))
    model = Model(kernel, jax.random.normal(keys[1], (8,), jnp.bfloat16), None)
    state = State(jnp.int32(step), model, optax.adam(1e-3).init(eqx.filter(model, eqx.is_array)))
    return jax.tree.map(
        lambda leaf: jax.device_put(leaf, sharding if leaf.ndim else REPLICATED), state
    )


def abstract(state, *, sharding=REPLICATED):
    def placed(leaf):
        return jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding if leaf.ndim else REPLICATED
        )

    return jax.tree.map(placed, state)


def assert_same(state, other):
    assert jax.tree.structure(state) == jax.tree.structure(other)
    for leaf, expected in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
        assert leaf.dtype == expected.dtype
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(expected))
