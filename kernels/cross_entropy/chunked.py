"""Projection and cross-entropy of each token in plain JAX, some tokens at a time: no array holds
all logits.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .reference import logits_of


def token_scores(
    x: Float[Array, "tokens width"],
    kernel: Float[Array, "width vocab"],
    bias: Float[Array, " vocab"],
    ids: Int[Array, " tokens"],
    num_counted: Int[Array, ""],
    *,
    chunk: int,
) -> tuple[Float[Array, " tokens"], Bool[Array, " tokens"]]:
    """Returns each token's cross-entropy, and whether its best guess is right; 0 and False from
    `num_counted` on.

    Only tokens that count cost time. The backward pass computes their logits again, and sums the
    gradients of `kernel` and `bias` in float32 or wider.

    Args:
        x: Multiplied in its own dtype; the tokens that count come first.
        kernel: Cast to the dtype of `x`.
        bias: Added to the logits.
        ids: int32, true ids.
        num_counted: int32, tokens that count.
        chunk: Tokens at a time.
    """
    tokens = x.shape[0]
    chunk = min(chunk, tokens)
    rest = -tokens % chunk
    x, ids = jnp.pad(x, ((0, rest), (0, 0))), jnp.pad(ids, (0, rest))
    scores = _token_scores(x, kernel.astype(x.dtype), bias, ids, num_counted, chunk)
    return jax.tree.map(lambda score: score[:tokens], scores)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _token_scores(x, kernel, bias, ids, num_counted, chunk: int) -> tuple[Array, Array]:
    return _forward(x, kernel, bias, ids, num_counted, chunk)[0]


def _forward(x, kernel, bias, ids, num_counted, chunk: int):
    wide = np.promote_types(x.dtype, np.float32)
    zeros = jnp.zeros(ids.shape, wide)

    def body(i, scores):
        logits, true = logits_of(_cut(x, i, chunk), kernel, bias), _cut(ids, i, chunk)
        logsumexp = jax.nn.logsumexp(logits, axis=1)
        nll = logsumexp - jnp.take_along_axis(logits, true[:, None], axis=1)[:, 0]
        is_right = jnp.argmax(logits, axis=1).astype(true.dtype) == true
        counts = _cut_counts(num_counted, i, chunk)
        own = jnp.where(counts, nll, jnp.zeros((), wide)), is_right & counts, logsumexp
        return jax.tree.map(functools.partial(_put, i=i, chunk=chunk), scores, own)

    scores = zeros, jnp.zeros(ids.shape, jnp.bool), zeros
    *scores, logsumexp = jax.lax.fori_loop(0, _num_chunks(num_counted, chunk), body, scores)
    return tuple(scores), (x, kernel, bias, ids, num_counted, logsumexp)


def _backward(chunk: int, saved, cotangents):
    x, kernel, bias, ids, num_counted, logsumexp = saved
    wide = logsumexp.dtype
    columns = jnp.arange(kernel.shape[1], dtype=ids.dtype)[None]

    def body(i, gradients):
        dx, dkernel, dbias = gradients
        own = _cut(x, i, chunk)
        probs = jnp.exp(logits_of(own, kernel, bias) - _cut(logsumexp, i, chunk)[:, None])
        is_true = (columns == _cut(ids, i, chunk)[:, None]).astype(wide)
        counts = _cut_counts(num_counted, i, chunk)
        scale = jnp.where(counts, _cut(cotangents[0], i, chunk), jnp.zeros((), wide))
        dlogits = (probs - is_true) * scale[:, None]
        dbias = dbias + dlogits.sum(axis=0)
        dlogits = dlogits.astype(x.dtype)
        dkernel = dkernel + jnp.dot(own.T, dlogits, preferred_element_type=wide)
        return _put(dx, jnp.dot(dlogits, kernel.T), i=i, chunk=chunk), dkernel, dbias

    gradients = jnp.zeros_like(x), jnp.zeros(kernel.shape, wide), jnp.zeros(bias.shape, wide)
    dx, dkernel, dbias = jax.lax.fori_loop(0, _num_chunks(num_counted, chunk), body, gradients)
    return dx, dkernel.astype(kernel.dtype), dbias.astype(bias.dtype), None, None


_token_scores.defvjp(_forward, _backward)


def _cut(array: Array, i: Array, chunk: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(array, i * chunk, chunk)


def _put(array: Array, part: Array, *, i: Array, chunk: int) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(array, part, i * chunk, axis=0)


def _cut_counts(num_counted: Array, i: Array, chunk: int) -> Array:
    return i * chunk + jnp.arange(chunk, dtype=jnp.int32) < num_counted


def _num_chunks(num_counted: Array, chunk: int) -> Array:
    return jax.lax.div(num_counted + (chunk - 1), jnp.int32(chunk))
