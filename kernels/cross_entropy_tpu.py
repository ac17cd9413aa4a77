"""Projection and cross-entropy of each token on TPUs: the Pallas kernels, and what surrounds them.

A program takes a block of the vocabulary past all tokens, which stay in VMEM: no logit ever leaves it.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

LANES = 128
_TOKENS, _COLUMNS = 256, 1280
"""Tokens and ids of a block of logits."""
_MAX_TOKENS = 8192
_VMEM_LIMIT_BYTES = 100 * 2**20
_LOWEST = -1e30
"""Stands for -inf, which would make NaN of differences."""


def why_not(tokens: int, width: int, dtype: jnp.dtype) -> str | None:
    """Returns why the kernels do not take `x` [tokens, width], or None if they do."""
    if dtype != jnp.bfloat16:
        return f"x is {dtype}, not bfloat16"
    if width % LANES or width > 1024:
        return f"a width of {width} is no multiple of {LANES} up to 1024"
    if tokens > _MAX_TOKENS:
        return f"{tokens} tokens are more than {_MAX_TOKENS}"
    return None


def token_scores(
    x: Float[Array, "tokens width"],
    kernel: Float[Array, "width vocab"],
    bias: Float[Array, " vocab"],
    ids: Int[Array, " tokens"],
    num_counted: Int[Array, ""],
) -> tuple[Float[Array, " tokens"], Bool[Array, " tokens"]]:
    """Computes what `cross_entropy_chunked.token_scores` does, for shapes that `why_not` has no objection to."""
    (tokens, _), vocab = x.shape, kernel.shape[1]
    more_tokens, more_columns = -tokens % _TOKENS, -vocab % min(_COLUMNS, -(-vocab // LANES) * LANES)
    surprise, is_right = _token_scores(
        jnp.pad(x, ((0, more_tokens), (0, 0))),
        jnp.pad(kernel, ((0, 0), (0, more_columns))),
        jnp.pad(bias.astype(jnp.float32), (0, more_columns), constant_values=_LOWEST)[None],
        jnp.pad(ids.astype(jnp.int32), (0, more_tokens)),
        num_counted,
    )
    return surprise[:tokens], is_right[:tokens]


@jax.custom_vjp
def _token_scores(x, kernel, bias, ids, num_counted):
    return _forward(x, kernel, bias, ids, num_counted)[0]


def _forward(x, kernel, bias, ids, num_counted):
    best, best_id, total, true = _call(
        _forward_kernel,
        "cross_entropy_forward",
        num_counted,
        whole=[x, _lanes(ids)],
        by_column=[kernel, bias],
        whole_out=[((x.shape[0], LANES), dtype) for dtype in (jnp.float32, jnp.int32, jnp.float32, jnp.float32)],
    )
    largest = best.max(axis=1)
    log_normalizer = largest + jnp.log((total * jnp.exp(best - largest[:, None])).sum(axis=1))
    guess = jnp.where(best == largest[:, None], best_id, kernel.shape[1]).min(axis=1)
    counts = jnp.arange(ids.shape[0], dtype=jnp.int32) < num_counted
    surprise = jnp.where(counts, log_normalizer - true.sum(axis=1), 0.0)
    return (surprise, (guess == ids) & counts), (x, kernel, bias, ids, num_counted, log_normalizer)


def _backward(saved, cotangents):
    x, kernel, bias, ids, num_counted, log_normalizer = saved
    counts = jnp.arange(ids.shape[0], dtype=jnp.int32) < num_counted
    scale = jnp.where(counts, cotangents[0], 0.0)
    log_normalizer = jnp.where(counts, log_normalizer, 0.0)
    dx, dkernel, dbias = _call(
        _backward_kernel,
        "cross_entropy_backward",
        num_counted,
        whole=[x, x.T, _lanes(ids), _lanes(log_normalizer), _lanes(scale)],
        by_column=[kernel, bias],
        whole_out=[(x.shape, jnp.float32)],
        by_column_out=[(kernel.shape, kernel.dtype), (bias.shape, jnp.float32)],
        scratch=[pltpu.VMEM((kernel.shape[0], _columns(kernel)), jnp.float32)],
    )
    return dx.astype(x.dtype), dkernel, dbias, None, None


_token_scores.defvjp(_forward, _backward)


def _lanes(vector: Array) -> Array:
    return jnp.broadcast_to(vector[:, None], (*vector.shape, LANES))


def _columns(kernel: Array) -> int:
    return min(_COLUMNS, kernel.shape[1])


def _call(body, name: str, num_counted, *, whole, by_column, whole_out, by_column_out=(), scratch=()):
    columns = _columns(by_column[0])

    def all_of(shape):
        return pl.BlockSpec(shape, lambda j, _: (0, 0))

    def block_of(shape):
        return pl.BlockSpec((shape[0], columns), lambda j, _: (0, j))

    outputs = [*whole_out, *by_column_out]
    return pl.pallas_call(
        body,
        name=name,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(by_column[0].shape[1] // columns,),
            in_specs=[*(all_of(x.shape) for x in whole), *(block_of(x.shape) for x in by_column)],
            out_specs=[*(all_of(s) for s, _ in whole_out), *(block_of(s) for s, _ in by_column_out)],
            scratch_shapes=list(scratch),
        ),
        out_shape=[jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in outputs],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary",), vmem_limit_bytes=_VMEM_LIMIT_BYTES
        ),
    )(num_counted.reshape(1), *whole, *by_column)


def _num_blocks(num_counted_ref) -> Array:
    return jax.lax.div(num_counted_ref[0] + (_TOKENS - 1), jnp.int32(_TOKENS))


def _tiles(block: Array) -> list[Array]:
    return [block[:, start : start + LANES] for start in range(0, block.shape[1], LANES)]


def _lane_ids(first: Array, tile: int) -> Array:
    return first + (tile * LANES) + jax.lax.broadcasted_iota(jnp.int32, (_TOKENS, LANES), 1)


def _forward_kernel(
    num_counted_ref, x_ref, ids_ref, kernel_ref, bias_ref, best_ref, best_id_ref, total_ref, true_ref
):
    """Keeps, for every token and lane, the largest logit, its id, the sum of exponentials, and the true id's logit."""
    first = pl.program_id(0) * kernel_ref.shape[1]

    @pl.when(pl.program_id(0) == 0)
    def _():
        best_ref[...] = jnp.full(best_ref.shape, 2 * _LOWEST, jnp.float32)
        best_id_ref[...] = jnp.zeros(best_id_ref.shape, jnp.int32)
        total_ref[...] = jnp.zeros(total_ref.shape, jnp.float32)
        true_ref[...] = jnp.zeros(true_ref.shape, jnp.float32)

    def block(i, _):
        rows = pl.ds(pl.multiple_of(i * _TOKENS, _TOKENS), _TOKENS)
        logits = jnp.dot(x_ref[rows, :], kernel_ref[...], preferred_element_type=jnp.float32) + bias_ref[...]
        best, best_id, true = best_ref[rows, :], best_id_ref[rows, :], true_ref[rows, :]
        old_best, wanted = best, ids_ref[rows, :]
        for tile, values in enumerate(_tiles(logits)):
            here = _lane_ids(first, tile)
            is_better = values > best
            best, best_id = jnp.where(is_better, values, best), jnp.where(is_better, here, best_id)
            true = true + jnp.where(here == wanted, values, 0.0)
        total = total_ref[rows, :] * jnp.exp(old_best - best)
        for values in _tiles(logits):
            total = total + jnp.exp(values - best)
        best_ref[rows, :], best_id_ref[rows, :], true_ref[rows, :] = best, best_id, true
        total_ref[rows, :] = total
        return 0

    jax.lax.fori_loop(0, _num_blocks(num_counted_ref), block, 0)


def _backward_kernel(
    num_counted_ref,
    x_ref,
    x_transposed_ref,
    ids_ref,
    log_normalizer_ref,
    scale_ref,
    kernel_ref,
    bias_ref,
    dx_ref,
    dkernel_ref,
    dbias_ref,
    sum_ref,
):
    """Computes the logits' gradients again, and at once their products with the kernel and with the tokens."""
    first = pl.program_id(0) * kernel_ref.shape[1]
    sum_ref[...] = jnp.zeros(sum_ref.shape, jnp.float32)
    dbias_ref[...] = jnp.zeros(dbias_ref.shape, jnp.float32)

    @pl.when(pl.program_id(0) == 0)
    def _():
        dx_ref[...] = jnp.zeros(dx_ref.shape, jnp.float32)

    def block(i, _):
        rows = pl.ds(pl.multiple_of(i * _TOKENS, _TOKENS), _TOKENS)
        logits = jnp.dot(x_ref[rows, :], kernel_ref[...], preferred_element_type=jnp.float32) + bias_ref[...]
        log_normalizer, scale, wanted = log_normalizer_ref[rows, :], scale_ref[rows, :], ids_ref[rows, :]
        parts = []
        for tile, values in enumerate(_tiles(logits)):
            is_true = _lane_ids(first, tile) == wanted
            chances = jnp.exp(values - log_normalizer)
            parts.append(jnp.where(is_true, chances - 1.0, chances) * scale)
        dlogits = jnp.concatenate(parts, axis=1)
        dbias_ref[...] += dlogits.sum(axis=0, keepdims=True)
        dlogits = dlogits.astype(x_ref.dtype)
        dx_ref[rows, :] += jax.lax.dot_general(
            dlogits, kernel_ref[...], (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
        )
        sum_ref[...] += jnp.dot(x_transposed_ref[:, rows], dlogits, preferred_element_type=jnp.float32)
        return 0

    jax.lax.fori_loop(0, _num_blocks(num_counted_ref), block, 0)
    dkernel_ref[...] = sum_ref[...].astype(dkernel_ref.dtype)
