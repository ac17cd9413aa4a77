"""Guards the text head's cross-entropy: each implementation against float64, rows without a counted
token, and refused arguments.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call  # For its list of races.
from jax.experimental.pallas import tpu as pltpu

from m3ae_tpu.kernels.cross_entropy import chunked, cross_entropy, reference, tpu
from m3ae_tpu.parallel.mesh import by_example, make_mesh, replicated
from m3ae_tpu.parallel.operations import Operations

INTERPRETED = pltpu.InterpretParams(uninitialized_memory="nan", detect_races=True)


def inputs(batch, tokens, vocab, width=16, *, dtype=jnp.float32, spread=1.0):
    """Draws tokens and a head; row 0 has no counted token, row 1 one, the others some."""
    rng = np.random.default_rng(tokens)
    is_counted = rng.random((batch, tokens)) < 0.6
    is_counted[:2] = False
    is_counted[1:, tokens // 2] = True
    x = jnp.asarray(spread * rng.standard_normal((batch, tokens, width)), dtype)
    # Numbers that bfloat16 represents, so that errors are those of the computation.
    kernel, bias = (
        jnp.asarray(rng.standard_normal(shape) * width**-0.5, jnp.bfloat16).astype(jnp.float32)
        for shape in ((width, vocab), vocab)
    )
    ids = jnp.asarray(rng.integers(0, vocab, (batch, tokens)), jnp.int32)
    return x, kernel, bias, ids, jnp.asarray(is_counted)


def results(function, x, kernel, bias, ids, is_counted):
    """Returns loss, accuracy and count of each row, then gradients of a weighted sum of losses."""

    def weighted(x, kernel, bias):
        rows = function(x, kernel, bias, ids, is_counted)
        weights = jnp.arange(1, x.shape[0] + 1).astype(rows.loss.dtype)
        return (rows.loss * weights).sum(), rows

    gradient = jax.value_and_grad(weighted, argnums=(0, 1, 2), has_aux=True)
    (_, rows), gradients = jax.jit(gradient)(x, kernel, bias)
    return [np.asarray(array, np.float64) for array in (*rows, *gradients)]


def exact(x, kernel, bias, ids, is_counted):
    with jax.enable_x64(True):
        wide = (jnp.asarray(np.asarray(array, np.float64)) for array in (x, kernel, bias))
        return results(reference.cross_entropy, *wide, ids=ids, is_counted=is_counted)


def error(got, want):
    return np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30)


def scored(token_scores):
    """Returns a cross-entropy of rows, from one of tokens of which the counted ones come first."""

    def function(x, kernel, bias, ids, is_counted):
        order = jnp.argsort(~is_counted.reshape(-1))
        back = jnp.argsort(order)
        rows = x.reshape(-1, x.shape[2])[order]
        scores = token_scores(
            rows, kernel, bias, ids.reshape(-1)[order], is_counted.sum(dtype=jnp.int32)
        )
        nll, is_right = (score[back].reshape(ids.shape) for score in scores)
        return reference.mean_by_row(nll, is_right, is_counted)

    return function


# Chunks that divide the tokens, that do not, that hold all or more, and one token alone.
@pytest.mark.parametrize(
    ("batch", "tokens", "chunk"),
    [(4, 8, 16), (3, 7, 4), (3, 7, 21), (3, 7, 50), (2, 1, 8), (5, 13, 1)],
)
def test_float32_is_exact_to_rounding(batch, tokens, chunk):
    arguments = inputs(batch, tokens, vocab=37)
    function = scored(functools.partial(chunked.token_scores, chunk=chunk))
    got, want = results(function, *arguments), exact(*arguments)
    assert max(map(error, got, want)) < 1e-6
    assert got[0][0] == got[1][0] == got[2][0] == 0  # Row 0 has no counted token.
    np.testing.assert_array_equal(got[3][~np.asarray(arguments[4])], 0)


def test_without_a_counted_token_all_is_zero():
    *arguments, is_counted = inputs(3, 7, vocab=37)
    for array in results(cross_entropy, *arguments, is_counted=jnp.zeros_like(is_counted)):
        np.testing.assert_array_equal(array, 0)


def rounded(x, kernel, bias, ids, is_counted):
    """Computes cross-entropy from rounded logits, as a linear layer in the dtype of x yields."""
    logits = (
        x.reshape(-1, x.shape[2]) @ kernel.astype(x.dtype) + bias.astype(x.dtype)[None]
    ).astype(jnp.float32)
    one_hot = jax.nn.one_hot(ids.reshape(-1), logits.shape[1])
    nll = jax.nn.logsumexp(logits, axis=1) - (logits * one_hot).sum(axis=1)
    is_right = (jnp.argmax(logits, axis=1) == ids.reshape(-1)).reshape(ids.shape)
    return reference.mean_by_row(nll.reshape(ids.shape), is_right, is_counted)


@pytest.mark.parametrize("spread", [1.0, 500.0])
def test_bfloat16_is_no_less_exact_than_rounded_logits(spread):
    arguments = inputs(6, 31, vocab=300, dtype=jnp.bfloat16, spread=spread)
    want, plain = exact(*arguments), results(rounded, *arguments)
    for ours, theirs, wanted in zip(results(cross_entropy, *arguments), plain, want, strict=True):
        assert np.isfinite(ours).all()
        assert error(ours, wanted) <= 1.1 * error(theirs, wanted) + 1e-6


# Two blocks of tokens and of ids, neither of them full.
@pytest.mark.parametrize(
    ("batch", "tokens", "vocab", "spread"), [(6, 21, 300, 1.0), (3, 7, 130, 500.0)]
)
def test_the_tpu_kernels_are_no_less_exact(batch, tokens, vocab, spread, monkeypatch):
    arguments = inputs(batch, tokens, vocab, width=128, dtype=jnp.bfloat16, spread=spread)
    for name, size in (
        ("_TOKENS", 32),
        ("_COLUMNS", (256,)),
        ("_TILE", 128),
    ):  # Small ones compile in less time.
        monkeypatch.setattr(tpu, name, size)
    with pltpu.force_tpu_interpret_mode(INTERPRETED):
        got = results(functools.partial(cross_entropy, implementation="tpu"), *arguments)
    assert interpret_pallas_call.races is not None
    assert not interpret_pallas_call.races.races_found
    want, plain = exact(*arguments), results(rounded, *arguments)
    for ours, theirs, wanted in zip(got, plain, want, strict=True):
        assert error(ours, wanted) <= 1.1 * error(theirs, wanted) + 1e-6
    np.testing.assert_array_equal(got[3][~np.asarray(arguments[4])], 0)


def test_auto_on_a_cpu_is_chunked_in_interpret_mode_too():
    arguments = inputs(2, 5, vocab=37, width=128, dtype=jnp.bfloat16)
    with pltpu.force_tpu_interpret_mode(INTERPRETED):
        got = results(cross_entropy, *arguments)
    want = results(functools.partial(cross_entropy, implementation="chunked"), *arguments)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (jnp.zeros((1, 2, 128)), "float32, not bfloat16"),
        (jnp.zeros((1, 2, 64), jnp.bfloat16), "width of 64"),
    ],
)
def test_a_kernel_asked_for_by_name_never_falls_back(x, message):
    head = jnp.zeros((x.shape[2], 20)), jnp.zeros(20)
    with pytest.raises(NotImplementedError, match=message):
        cross_entropy(
            x, *head, jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), jnp.bool), implementation="tpu"
        )


@pytest.mark.parametrize("implementation", ["auto", "chunked", "xla"])
def test_without_tokens_loss_and_gradients_are_zero(implementation):
    _, kernel, bias, _, _ = inputs(4, 3, vocab=20)

    def loss(x, kernel, bias):
        none = jnp.zeros((4, 0), jnp.int32), jnp.zeros((4, 0), jnp.bool)
        rows = cross_entropy(x, kernel, bias, *none, implementation=implementation)
        return rows.loss.sum() + rows.accuracy.sum()

    x = jnp.zeros((4, 0, kernel.shape[0]))
    value, gradients = jax.value_and_grad(loss, argnums=(0, 1, 2))(x, kernel, bias)
    assert value == 0
    assert all(jnp.all(gradient == 0) for gradient in gradients)


def test_of_equal_guesses_the_lowest_id_is_taken():
    x, kernel, bias, _, _ = inputs(4, 3, vocab=20)
    ids = jnp.asarray([[4] * 3, [9] * 3, [9] * 3, [4] * 3], jnp.int32)
    bias = jnp.zeros_like(bias).at[jnp.asarray([4, 9])].set(100.0)
    kernel = kernel.at[:, 9].set(kernel[:, 4])
    rows = cross_entropy(x, kernel, bias, ids, jnp.ones((4, 3), jnp.bool))
    np.testing.assert_array_equal(rows.accuracy, [1, 0, 0, 1])


def test_devices_compute_their_own_rows_and_only_add_up_gradients():
    mesh = make_mesh()
    *arguments, ids, is_counted = inputs(16, 5, vocab=37)
    shardings = [
        by_example(mesh),
        replicated(mesh),
        replicated(mesh),
        by_example(mesh),
        by_example(mesh),
    ]
    placed = [
        jax.device_put(array, where)
        for array, where in zip((*arguments, ids, is_counted), shardings, strict=True)
    ]
    mapped = Operations(mesh).cross_entropy
    got = results(mapped, *placed)
    assert max(map(error, got, exact(*arguments, ids=ids, is_counted=is_counted))) < 1e-6

    def gradients(x, kernel, bias, ids, is_counted):
        def loss(x, kernel, bias):
            return mapped(x, kernel, bias, ids, is_counted).loss.mean()

        return jax.grad(loss, argnums=(0, 1, 2))(x, kernel, bias)

    text = jax.jit(gradients).lower(*placed).compile().as_text() or ""
    assert "all-reduce" in text
    assert not [name for name in ("all-gather", "all-to-all", "collective-permute") if name in text]
    assert "all-reduce" not in "".join(bodies(text))


def bodies(text):
    """Returns the text of the computations of a program's loops."""
    names = {piece.split(",")[0].split()[0] for piece in text.split("body=")[1:]}
    assert names
    return [piece for piece in text.split("\n\n") if piece.lstrip().split(" ")[0] in names]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": jnp.zeros((3, 16))}, "x has shape"),
        ({"kernel": jnp.zeros((15, 37))}, "kernel has shape .15, 37."),
        ({"bias": jnp.zeros(36)}, "bias .36,."),
        ({"ids": jnp.zeros((3, 7))}, "ids is float32"),
        ({"is_counted": jnp.zeros((3, 7), jnp.int32)}, "is_counted is int32"),
        ({"implementation": "fast"}, "choose auto"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message):
    names = ("x", "kernel", "bias", "ids", "is_counted")
    arguments = dict(zip(names, inputs(3, 7, vocab=37), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(cross_entropy)(**arguments)  # Without the suite's checks of types.
