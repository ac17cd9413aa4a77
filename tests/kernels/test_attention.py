"""Guards attention: each implementation against float64, rows without a key, the choice between
implementations, and refused arguments.
"""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call  # For its list of races.
from jax.experimental.pallas import tpu as pltpu

from m3ae_tpu.kernels.attention import attention, cudnn, reference
from m3ae_tpu.kernels.chips import CHIPS

INTERPRETED = pltpu.InterpretParams(uninitialized_memory="nan", detect_races=True)


def inputs(tokens, head_dim, dtype, *, num_heads=2, spread=1.0):
    """Draws qkv, a mask and output gradients; row 0 has no valid key, row 1 one, row 2 some."""
    rng = np.random.default_rng(tokens)
    qkv = rng.standard_normal((3, tokens, 3, num_heads * head_dim))
    qkv[:, :, :2] *= spread**0.5
    is_valid = rng.random((3, tokens)) < 0.6
    is_valid[:2] = False
    is_valid[1:, tokens // 2] = True
    dout = rng.standard_normal((3, tokens, num_heads * head_dim))
    return jnp.asarray(qkv, dtype), jnp.asarray(is_valid), jnp.asarray(dout, dtype)


def out_and_gradients(function, qkv, dout):
    """Returns output and gradients of queries, keys and values, as float64."""

    def both(qkv, dout):
        out, pull_back = jax.vjp(function, qkv)
        return out, pull_back(dout)[0]

    out, gradient = (np.asarray(x, np.float64) for x in jax.jit(both)(qkv, dout))
    return [out, *(gradient[:, :, slot] for slot in range(3))]


def exact(qkv, is_valid, num_heads, dout):
    with jax.enable_x64(True):
        wide = (jnp.asarray(np.asarray(x, np.float64)) for x in (qkv, dout))
        return out_and_gradients(lambda qkv: reference.attention(qkv, is_valid, num_heads), *wide)


def interpreted(qkv, is_valid, num_heads, dout, device_kind=None):
    """Runs the TPU kernels on this CPU; uninitialised memory is NaN, races are errors."""

    def function(qkv):
        return attention(qkv, is_valid, num_heads, implementation="tpu", device_kind=device_kind)

    with pltpu.force_tpu_interpret_mode(INTERPRETED):
        results = out_and_gradients(function, qkv, dout)
    races = interpret_pallas_call.races
    assert races is not None
    assert not races.races_found
    return results


def errors(got, want):
    return [
        np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)
        for a, b in zip(got, want, strict=True)
    ]


# One factor at a time: token counts around tiles of 128 and halves of them, with and without a
# tail, one and two key tiles, widths of heads, softmax from flat to saturated.
@pytest.mark.parametrize(
    ("tokens", "head_dim", "spread"),
    [
        (2, 64, 1),
        (7, 80, 1),
        (49, 32, 500),
        (81, 64, 1),
        (81, 64, 22),
        (127, 32, 500),
        (129, 32, 1),
        (130, 128, 22),
        (160, 64, 3),
        (200, 32, 2_000),
        (321, 32, 22),
    ],
)
@pytest.mark.parametrize("chip", ["v5e", "v6e"])
def test_bfloat16_is_as_exact_as_xla(tokens, head_dim, spread, chip):
    if chip == "v6e" and (tokens < 129 and tokens != 81):
        pytest.skip("tiled as for v5e")
    qkv, is_valid, dout = inputs(tokens, head_dim, jnp.bfloat16, spread=spread)
    want = exact(qkv, is_valid, 2, dout)
    kernel = interpreted(qkv, is_valid, 2, dout, device_kind=CHIPS[chip].device_kind)
    plain = out_and_gradients(
        lambda qkv: attention(qkv, is_valid, 2, implementation="xla"), qkv, dout
    )
    for ours, theirs in zip(errors(kernel, want), errors(plain, want), strict=True):
        assert ours <= 1.1 * theirs
    for array in kernel:
        np.testing.assert_array_equal(array[0], 0.0)


@pytest.mark.parametrize(("tokens", "head_dim"), [(1, 32), (81, 64), (140, 80)])
def test_float32_is_exact_to_rounding(tokens, head_dim):
    qkv, is_valid, dout = inputs(tokens, head_dim, jnp.float32)
    want, kernel = exact(qkv, is_valid, 2, dout), interpreted(qkv, is_valid, 2, dout)
    assert max(errors(kernel, want)) < 2e-6
    for array in kernel:
        np.testing.assert_array_equal(array[0], 0.0)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize(
    ("tokens", "head_dim", "spread"),
    [
        (2, 64, 1),
        (7, 80, 1),
        (81, 64, 1),
        (81, 64, 22),
        (127, 32, 500),
        (128, 64, 1),
        (321, 32, 22),
    ],
)
def test_cudnn_is_exact_to_a_few_roundings(tokens, head_dim, spread, is_masked):
    qkv, is_valid, dout = inputs(tokens, head_dim, jnp.bfloat16, spread=spread)
    is_valid = is_valid if is_masked else None
    want = exact(qkv, is_valid, 2, dout)
    kernel = out_and_gradients(
        lambda qkv: attention(qkv, is_valid, 2, implementation="cudnn"), qkv, dout
    )
    plain = out_and_gradients(
        lambda qkv: attention(qkv, is_valid, 2, implementation="xla"), qkv, dout
    )
    # cuDNN computes a query's mean gradient as `dout . out`, from rounded weights, which is less
    # exact where softmax saturates.
    for ours, theirs in zip(errors(kernel, want), errors(plain, want), strict=True):
        assert ours <= max(1.1 * theirs, 0.02)
    for array in kernel:
        if is_masked:
            np.testing.assert_array_equal(array[0], 0.0)


def test_all_keys_are_attended_to_without_a_mask():
    qkv, _, dout = inputs(21, 64, jnp.float32)
    assert max(errors(interpreted(qkv, None, 2, dout), exact(qkv, None, 2, dout))) < 2e-6


def test_logits_of_any_size_lose_no_row():
    qkv, is_valid, dout = inputs(21, 32, jnp.float32, spread=1e4)
    kernel = interpreted(qkv, is_valid, 2, dout)
    # Softmax multiplies a logit's rounding by its size: 1e4 * 2 ** -24, and more in the gradients.
    assert errors(kernel, exact(qkv, is_valid, 2, dout))[0] < 1e-3
    assert all(np.isfinite(array).all() for array in kernel)


@pytest.mark.parametrize("implementation", ["auto", "xla"])
def test_on_a_cpu_is_the_reference_bit_for_bit(implementation):
    qkv, is_valid, dout = inputs(21, 32, jnp.float32)
    want = out_and_gradients(lambda qkv: reference.attention(qkv, is_valid, 2), qkv, dout)
    flat = qkv.reshape(*qkv.shape[:2], -1)
    for shaped in (qkv, flat):
        got = jax.jit(attention, static_argnums=2, static_argnames="implementation")(
            shaped, is_valid, 2, implementation=implementation
        )
        np.testing.assert_array_equal(np.asarray(got, np.float64), want[0])
    got = out_and_gradients(
        lambda qkv: attention(qkv, is_valid, 2, implementation=implementation), qkv, dout
    )
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


def test_auto_on_a_cpu_is_the_reference_in_interpret_mode_too():
    qkv, is_valid, dout = inputs(5, 32, jnp.float32)
    with pltpu.force_tpu_interpret_mode():
        got = out_and_gradients(lambda qkv: attention(qkv, is_valid, 2), qkv, dout)
    want = out_and_gradients(lambda qkv: reference.attention(qkv, is_valid, 2), qkv, dout)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


def test_without_a_mesh_the_choice_is_made_when_the_program_is_lowered():
    traced = jax.jit(lambda qkv: attention(qkv, None, 2)).trace(
        jnp.zeros((2, 81, 3, 128), jnp.bfloat16)
    )
    assert "tpu_custom_call" in traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" not in traced.lower(lowering_platforms=("cpu",)).as_text()


@pytest.mark.parametrize(
    ("device_kind", "primitive"),
    [
        ("TPU v5 lite", "pallas_call"),
        ("cpu", "dot_general"),
        ("NVIDIA H100", "dot_product_attention_fwd"),
    ],
)
def test_device_kind_decides_when_the_program_is_traced(device_kind, primitive):
    qkv = jnp.zeros((2, 9, 3, 64), jnp.bfloat16)
    text = str(jax.make_jaxpr(lambda qkv: attention(qkv, None, 2, device_kind=device_kind))(qkv))
    assert primitive in text
    assert "platform_index" not in text
    assert ("pallas_call" in text) == (primitive == "pallas_call")


def test_a_chip_that_the_kernel_does_not_fit_takes_xla():
    qkv = jnp.zeros((1, 600, 3, 64), jnp.bfloat16)
    with pytest.raises(NotImplementedError, match="does not fit into the VMEM of a v4"):
        attention(qkv, None, 1, implementation="tpu", device_kind="TPU v4")
    text = str(jax.make_jaxpr(lambda qkv: attention(qkv, None, 1, device_kind="TPU v4"))(qkv))
    assert "pallas_call" not in text


@pytest.mark.parametrize(
    ("dtype", "head_dim", "message"),
    [(jnp.float32, 64, "dtype = float32 is neither"), (jnp.bfloat16, 12, "width of 12 is not a")],
)
def test_cudnn_names_what_it_does_not_support(dtype, head_dim, message, monkeypatch):
    monkeypatch.setattr(cudnn, "is_here", lambda: True)
    assert message in (cudnn.unsupported_reason(jnp.dtype(dtype), head_dim) or "")
    assert cudnn.unsupported_reason(jnp.dtype(jnp.bfloat16), 64) is None


X = jnp.zeros((2, 5, 3, 64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((jnp.zeros((2, 5, 64)), None, 2), "qkv has shape (2, 5, 64); give"),
        ((X, None, 3), "num_heads = 3 does not divide the width 64"),
        (
            (X, jnp.zeros((2, 5)), 2),
            "is_valid is float32 of shape (2, 5); give bool of shape (2, 5)",
        ),
        (
            (X, jnp.zeros((2, 4), bool), 2),
            "is_valid is bool of shape (2, 4); give bool of shape (2, 5)",
        ),
        ((X[:, :0], None, 2), "every size must be 1 or more"),
        ((X.astype(jnp.int32), None, 2), "qkv is int32; cast it to a float."),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        inspect.unwrap(attention)(*arguments)  # Without the suite's checks of types.


def test_unknown_implementation_is_refused():
    with pytest.raises(
        ValueError, match="implementation = 'cuda'; choose auto, tpu, cudnn, hopper, xla"
    ):
        inspect.unwrap(attention)(X, None, 2, implementation="cuda")


@pytest.mark.parametrize(
    ("qkv", "num_heads", "message"),
    [
        (jnp.zeros((1, 1025, 3, 32)), 1, "tokens = 1025 is more than 1024"),
        (jnp.zeros((1, 4, 3, 24)), 1, "a head's width of 24 is not a multiple of 16"),
        (jnp.zeros((1, 4, 3, 32), jnp.float16), 1, "dtype = float16 is neither"),
        (jnp.zeros((1, 1024, 3, 2048)), 16, "do not fit into VMEM"),
    ],
)
def test_kernel_asked_for_by_name_never_falls_back(qkv, num_heads, message):
    with pytest.raises(NotImplementedError, match=message):
        attention(qkv, None, num_heads, implementation="tpu")
    assert attention(qkv, None, num_heads).dtype == qkv.dtype
