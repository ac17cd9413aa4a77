"""Guards the forms of each kind of device: they differ in rounding alone, and TPUs copy no rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from m3ae_tpu.config import GradientSums, TransformerConfig
from m3ae_tpu.configs import debug
from m3ae_tpu.model.transformer import Transformer
from m3ae_tpu.parallel import operations as operations_module
from m3ae_tpu.parallel.forms import Forms, forms_of
from m3ae_tpu.parallel.operations import Operations
from tests.parallel.meshes import ONE, mesh_of

STACK = TransformerConfig(num_layers=2, width=32, num_heads=2)
ROWS, TOKENS = 8, 9


def loss_of(operations):
    model = Transformer(STACK, debug.CONFIG.model, key=jax.random.key(0), operations=operations)

    x, weights = jax.random.normal(jax.random.key(1), (2, ROWS, TOKENS, STACK.width))

    def loss(model, x):
        return jnp.sum(weights * model(x, None))

    return loss, model, x


def gradients(operations):
    loss, *arguments = loss_of(operations)
    return jax.tree.leaves(jax.jit(jax.grad(loss, argnums=(0, 1)))(*arguments))


@pytest.mark.parametrize("platform", ["tpu"])
@pytest.mark.parametrize(
    ("name", "sums"), [(ONE, "compute_dtype"), (ONE, "float32"), ("2,2,2", "compute_dtype")]
)
def test_gradients_differ_from_those_of_a_cpu_by_rounding_alone(
    monkeypatch, platform, name, sums: GradientSums
):
    assert forms_of(platform) != Forms()
    expected = gradients(Operations())
    monkeypatch.setattr(operations_module, "forms_of", lambda _: forms_of(platform))
    with pltpu.force_tpu_interpret_mode():
        got = gradients(Operations(mesh_of(name), sums))
    for left, right in zip(got, expected, strict=True):
        assert np.linalg.norm(left - right) <= 2e-6 * np.linalg.norm(right)


def test_with_the_forms_of_a_tpu_no_activation_becomes_rows(monkeypatch):
    def has_rows():
        loss, *arguments = loss_of(Operations(mesh_of(ONE)))
        text = str(jax.make_jaxpr(jax.grad(loss))(*arguments))
        return f"[{ROWS * TOKENS}," in text

    assert has_rows()
    monkeypatch.setattr(operations_module, "forms_of", lambda _: forms_of("tpu"))
    assert not has_rows()
