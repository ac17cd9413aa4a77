"""Projection and cross-entropy of each token in plain JAX, a chunk of tokens at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from . import columns
from .reference import logits_of


def token_scores(
    x: Float[Array, "tokens width"],
    kernel: Float[Array, "width vocab"],
    bias: Float[Array, " vocab"],
    ids: Int[Array, " tokens"],
    num_counted: Int[Array, ""],
    *,
    chunk: int,
    vocabulary_axis: str | None = None,
) -> tuple[Float[Array, " tokens"], Bool[Array, " tokens"]]:
    """Returns each token's cross-entropy, and whether its best guess is right; 0 and False from
    `num_counted` on.

    Only counted tokens cost time, and no array holds the logits of more than a chunk. The backward
    pass computes the logits again, and sums the gradients of `kernel` and `bias` in float32 or
    wider.

    Args:
        x: Hidden tokens, counted ones first; multiplied in their own dtype.
        kernel: Cast to the dtype of `x`.
        bias: Added to the logits.
        ids: int32, true ids, as `columns.own_ids` gives them.
        num_counted: int32, counted tokens.
        chunk: Tokens whose logits are held at a time.
        vocabulary_axis: Mesh axis over which `kernel` and `bias` are cut, if they are.
    """
    tokens = x.shape[0]
    num_padded = max(1, tokens)  # Without any token there is still a chunk to trace.
    chunk = min(chunk, num_padded)
    padding = num_padded + -num_padded % chunk - tokens
    x, ids = jnp.pad(x, ((0, padding), (0, 0))), jnp.pad(ids, (0, padding))
    scores = _token_scores(
        x, kernel.astype(x.dtype), bias, ids, num_counted, chunk, vocabulary_axis
    )
    return jax.tree.map(lambda score: score[:tokens], scores)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _token_scores(
    x, kernel, bias, ids, num_counted, chunk: int, axis: str | None
) -> tuple[Array, Array]:
    return _forward(x, kernel, bias, ids, num_counted, chunk, axis)[0]


def _forward(x, kernel, bias, ids, num_counted, chunk: int, axis: str | None):
    wide = np.promote_types(x.dtype, np.float32)
    zeros = jnp.zeros(ids.shape, wide)

    def body(i, found):
        logits, true = logits_of(_take(x, i, chunk), kernel, bias), _take(ids, i, chunk)
        guess = jnp.argmax(logits, axis=1).astype(ids.dtype)
        own = columns.Columns(
            jax.nn.logsumexp(logits, axis=1),
            jnp.where(true >= 0, _at(logits, jnp.maximum(true, 0)), jnp.zeros((), wide)),
            _at(logits, guess),
            guess,
        )
        return jax.tree.map(functools.partial(_put, i=i, chunk=chunk), found, own)

    found = columns.Columns(zeros, zeros, zeros, jnp.zeros_like(ids))
    found = jax.lax.fori_loop(0, _num_chunks(num_counted, chunk), body, found)
    is_counted = jnp.arange(ids.shape[0], dtype=jnp.int32) < num_counted
    scores, logsumexp = columns.token_scores(found, ids, is_counted, axis)
    return scores, (x, kernel, bias, ids, num_counted, logsumexp)


def _backward(chunk: int, axis: str | None, saved, cotangents):
    x, kernel, bias, ids, num_counted, logsumexp = saved
    wide, cotangent = logsumexp.dtype, columns.summed_cotangent(cotangents[0], axis)
    places = jnp.arange(kernel.shape[1], dtype=ids.dtype)[None]

    def body(i, gradients):
        dx, dkernel, dbias = gradients
        own = _take(x, i, chunk)
        probs = jnp.exp(logits_of(own, kernel, bias) - _take(logsumexp, i, chunk)[:, None])
        is_true = (places == _take(ids, i, chunk)[:, None]).astype(wide)
        is_counted = _is_counted(num_counted, i, chunk)
        scale = jnp.where(is_counted, _take(cotangent, i, chunk), jnp.zeros((), wide))
        dlogits = (probs - is_true) * scale[:, None]
        dbias = dbias + dlogits.sum(axis=0)
        dlogits = dlogits.astype(x.dtype)
        dkernel = dkernel + jnp.dot(own.T, dlogits, preferred_element_type=wide)
        return _put(dx, jnp.dot(dlogits, kernel.T), i=i, chunk=chunk), dkernel, dbias

    gradients = jnp.zeros_like(x), jnp.zeros(kernel.shape, wide), jnp.zeros(bias.shape, wide)
    dx, dkernel, dbias = jax.lax.fori_loop(0, _num_chunks(num_counted, chunk), body, gradients)
    return dx, dkernel.astype(kernel.dtype), dbias.astype(bias.dtype), None, None


_token_scores.defvjp(_forward, _backward)


def _at(logits: Array, places: Array) -> Array:
    return jnp.take_along_axis(logits, places[:, None], axis=1)[:, 0]


def _take(array: Array, i: Array, chunk: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(array, i * chunk, chunk)


def _put(array: Array, values: Array, *, i: Array, chunk: int) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(array, values, i * chunk, axis=0)


def _is_counted(num_counted: Array, i: Array, chunk: int) -> Array:
    return i * chunk + jnp.arange(chunk, dtype=jnp.int32) < num_counted


def _num_chunks(num_counted: Array, chunk: int) -> Array:
    return jax.lax.div(num_counted + (chunk - 1), jnp.int32(chunk))
