"""Projection and cross-entropy of each token on TPUs: the Pallas kernels and their gradient.

The tokens stay in VMEM while blocks of the vocabulary pass through it. No logit is written to HBM.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

from ..chips import CHIPS, chip_name
from ..dispatch import interpret_mode
from . import columns

LANES = 128
_TOKENS, _TILE = 256, 256
"""Tokens of a block of logits, and ids of a tile. The matrix units multiply one tile while the
vector units reduce the one before.
"""
_COLUMNS = (1280, 640, 256, 128)
"""Ids of a block of logits: the most that fit into a chip's VMEM."""
_MAX_TOKENS = 8192
_VMEM_LIMIT_BYTES = 64 * 2**20
_LOWEST = -1e30
"""Logit of a padding id. Not -inf, whose difference with itself is NaN."""


def unsupported_reason(
    tokens: int, width: int, dtype: jnp.dtype, device_kind: str | None = None
) -> str | None:
    """Returns why the kernels do not support `x` [tokens, width], or None if they do.

    Args:
        tokens: Rows of `x`.
        width: Columns of `x`.
        dtype: That of `x`.
        device_kind: As JAX names the chip; the VMEM of an unknown one, or of None, is v5e's.
    """
    if dtype != jnp.bfloat16:
        return f"x is {dtype}, not bfloat16"
    if width % LANES or width > 1024:
        return f"a width of {width} is not a multiple of {LANES} up to 1024"
    if tokens == 0:
        return "there are no tokens"
    if tokens > _MAX_TOKENS:
        return f"{tokens} tokens are more than {_MAX_TOKENS}"
    if _most_columns(tokens, width, 4, device_kind) is None:
        return f"{tokens} tokens do not fit into the VMEM of a {chip_name(device_kind)}"
    return None


def _most_columns(tokens: int, width: int, itemsize: int, device_kind: str | None) -> int | None:
    """Returns the ids of a block with which the backward pass fits into VMEM, or None.

    Args:
        tokens: As for `unsupported_reason`.
        width: As for `unsupported_reason`.
        itemsize: Bytes of an element of the projection.
        device_kind: As for `unsupported_reason`.
    """
    rows = -(-tokens // _TOKENS) * _TOKENS
    # x, its transpose and its gradient; three vectors with one token in each row of lanes.
    whole = rows * (width * (2 + 2 + 4) + 3 * LANES * 4)
    for ids in _COLUMNS:
        # The projection and its gradient, each twice, as blocks are copied ahead; the cast one, and
        # the gradient's sum; rows of biases, which fill eight each; what the compiler adds.
        blocks = ids * (width * (4 * itemsize + 2 + 4) + 4 * 8 * 4) + 2**20
        if whole + blocks <= _vmem_bytes(device_kind):
            return ids
    return None


def _vmem_bytes(device_kind: str | None) -> int:
    vmem_bytes = CHIPS[chip_name(device_kind) or "v5e"].vmem_bytes
    return min(_VMEM_LIMIT_BYTES, vmem_bytes or _VMEM_LIMIT_BYTES)


def token_scores(
    x: Float[Array, "tokens width"],
    kernel: Float[Array, "width vocab"],
    bias: Float[Array, " vocab"],
    ids: Int[Array, " tokens"],
    num_counted: Int[Array, ""],
    *,
    is_interpretable: bool = True,
    vocabulary_axis: str | None = None,
    device_kind: str | None = None,
) -> tuple[Float[Array, " tokens"], Bool[Array, " tokens"]]:
    """Computes `chunked.token_scores`; `unsupported_reason` must be None for the inputs.

    Args:
        x: As for `chunked.token_scores`.
        kernel: As for `chunked.token_scores`.
        bias: As for `chunked.token_scores`.
        ids: As for `chunked.token_scores`.
        num_counted: As for `chunked.token_scores`.
        is_interpretable: Run on a CPU under `pltpu.force_tpu_interpret_mode()`; if False the mode
            is ignored.
        vocabulary_axis: As for `chunked.token_scores`.
        device_kind: As for `unsupported_reason`.
    """
    (tokens, width), vocab = x.shape, kernel.shape[1]
    more_tokens = -tokens % _TOKENS
    most = _most_columns(tokens, width, kernel.dtype.itemsize, device_kind) or _COLUMNS[-1]
    block = _Block(min(most, -(-vocab // LANES) * LANES), _vmem_bytes(device_kind))
    more_columns = -vocab % block.columns
    scores = _token_scores(
        jnp.pad(x, ((0, more_tokens), (0, 0))),
        jnp.pad(kernel, ((0, 0), (0, more_columns))),
        jnp.pad(bias.astype(jnp.float32), (0, more_columns), constant_values=_LOWEST)[None],
        jnp.pad(ids.astype(jnp.int32), (0, more_tokens)),
        num_counted,
        is_interpretable,
        vocabulary_axis,
        block,
    )
    return jax.tree.map(lambda score: score[:tokens], scores)


class _Block(NamedTuple):
    """Share of a chip that the kernels use."""

    columns: int
    """Ids of a block of logits."""
    vmem_bytes: int
    """Most VMEM that a kernel may take."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _token_scores(
    x, kernel, bias, ids, num_counted, is_interpretable: bool, axis: str | None, block: _Block
) -> tuple[Array, Array]:
    return _forward(x, kernel, bias, ids, num_counted, is_interpretable, axis, block)[0]


def _forward(
    x, kernel, bias, ids, num_counted, is_interpretable: bool, axis: str | None, block: _Block
):
    best, best_id, total, true = _call(
        _forward_kernel,
        "cross_entropy_forward",
        num_counted,
        block,
        is_interpretable=is_interpretable,
        whole=[x, _lanes(ids)],
        by_column=[kernel, bias],
        whole_out=[
            ((x.shape[0], LANES), dtype)
            for dtype in (jnp.float32, jnp.int32, jnp.float32, jnp.float32)
        ],
        scratch=[pltpu.VMEM((kernel.shape[0], block.columns), x.dtype)],
    )
    largest = best.max(axis=1)
    logsumexp = largest + jnp.log((total * jnp.exp(best - largest[:, None])).sum(axis=1))
    guess = jnp.where(best == largest[:, None], best_id, kernel.shape[1]).min(axis=1)
    is_counted = jnp.arange(ids.shape[0], dtype=jnp.int32) < num_counted
    own = columns.Columns(logsumexp, true.sum(axis=1), largest, guess)
    scores, logsumexp = columns.token_scores(own, ids, is_counted, axis)
    return scores, (x, kernel, bias, ids, num_counted, logsumexp)


def _backward(is_interpretable: bool, axis: str | None, block: _Block, saved, cotangents):
    x, kernel, bias, ids, num_counted, logsumexp = saved
    is_counted = jnp.arange(ids.shape[0], dtype=jnp.int32) < num_counted
    scale = jnp.where(is_counted, columns.summed_cotangent(cotangents[0], axis), 0.0)
    dx, dkernel, dbias = _call(
        _backward_kernel,
        "cross_entropy_backward",
        num_counted,
        block,
        is_interpretable=is_interpretable,
        whole=[x, x.T, _lanes(ids), _lanes(logsumexp), _lanes(scale)],
        by_column=[kernel, bias],
        whole_out=[(x.shape, jnp.float32)],
        by_column_out=[(kernel.shape, kernel.dtype), (bias.shape, jnp.float32)],
        scratch=[
            pltpu.VMEM((kernel.shape[0], block.columns), dtype) for dtype in (x.dtype, jnp.float32)
        ],
    )
    return dx.astype(x.dtype), dkernel, dbias, None, None


_token_scores.defvjp(_forward, _backward)


def _lanes(vector: Array) -> Array:
    return jnp.broadcast_to(vector[:, None], (*vector.shape, LANES))


def _call(
    body,
    name: str,
    num_counted,
    block: _Block,
    *,
    is_interpretable: bool,
    whole,
    by_column,
    whole_out,
    by_column_out=(),
    scratch=(),
):
    """Runs a kernel; arrays `whole` stay in VMEM, blocks of columns of `by_column` pass through it.

    `jax.vmap` runs it once for each index of the mapped axis, since the number of counted tokens
    differs.
    """
    columns = block.columns

    def all_of(shape):
        return pl.BlockSpec(shape, lambda j, i, _: (0, 0))

    def block_of(shape):
        return pl.BlockSpec((shape[0], columns), lambda j, i, _: (0, j))

    outputs = [*whole_out, *by_column_out]

    @jax.custom_batching.sequential_vmap
    def run(*arrays: Array) -> Sequence[Array]:
        with interpret_mode(is_allowed=is_interpretable):
            return pl.pallas_call(
                body,
                name=name,
                grid_spec=pltpu.PrefetchScalarGridSpec(
                    num_scalar_prefetch=1,
                    grid=(by_column[0].shape[1] // columns, whole[0].shape[0] // _TOKENS),
                    in_specs=[
                        *(all_of(x.shape) for x in whole),
                        *(block_of(x.shape) for x in by_column),
                    ],
                    out_specs=[
                        *(all_of(s) for s, _ in whole_out),
                        *(block_of(s) for s, _ in by_column_out),
                    ],
                    scratch_shapes=list(scratch),
                ),
                out_shape=[jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in outputs],
                compiler_params=pltpu.CompilerParams(
                    dimension_semantics=("arbitrary", "arbitrary"),
                    vmem_limit_bytes=block.vmem_bytes,
                ),
            )(*arrays)

    return run(num_counted.reshape(1), *whole, *by_column)


def _tiles(cast_ref) -> list[slice]:
    return [
        slice(start, min(start + _TILE, cast_ref.shape[1]))
        for start in range(0, cast_ref.shape[1], _TILE)
    ]


def _logits(x_ref, rows, cast_ref, bias_ref, columns: slice) -> list[Array]:
    """Returns a tile's logits, as arrays of `LANES` ids."""
    logits = jnp.dot(x_ref[rows, :], cast_ref[:, columns], preferred_element_type=jnp.float32)
    logits = logits + bias_ref[:, columns]
    return [logits[:, start : start + LANES] for start in range(0, logits.shape[1], LANES)]


def _one_ahead(tiles: list[slice], compute: Callable[[slice], Any]) -> Iterator[tuple[slice, Any]]:
    """Yields (tile, compute(tile)), issuing the next tile first so that matrix and vector units
    overlap.
    """
    ahead = compute(tiles[0])
    for tile, following in itertools.zip_longest(tiles, tiles[1:]):
        current, ahead = ahead, compute(following) if following else None
        yield tile, current


def _lane_ids(first: Array, column: int) -> Array:
    return first + column + jax.lax.broadcasted_iota(jnp.int32, (_TOKENS, LANES), 1)


def _place(num_counted_ref):
    """Returns whether this program is the first of all, whether it is the first of its columns,
    whether it has a counted token, and its rows.
    """
    column, block = pl.program_id(0), pl.program_id(1)
    rows = pl.ds(pl.multiple_of(block * _TOKENS, _TOKENS), _TOKENS)
    return (column == 0) & (block == 0), block == 0, block * _TOKENS < num_counted_ref[0], rows


def _forward_kernel(
    num_counted_ref,
    x_ref,
    ids_ref,
    kernel_ref,
    bias_ref,
    best_ref,
    best_id_ref,
    total_ref,
    true_ref,
    cast_ref,
):
    """Updates, for every token and lane, the largest logit, its id, the sum of exponentials, and
    the true id's logit.
    """
    starts, is_new, has_tokens, rows = _place(num_counted_ref)
    first = pl.program_id(0) * kernel_ref.shape[1]

    @pl.when(starts)
    def _():
        best_ref[...] = jnp.full(best_ref.shape, 2 * _LOWEST, jnp.float32)
        best_id_ref[...] = jnp.zeros(best_id_ref.shape, jnp.int32)
        total_ref[...] = jnp.zeros(total_ref.shape, jnp.float32)
        true_ref[...] = jnp.zeros(true_ref.shape, jnp.float32)

    @pl.when(is_new)
    def _():
        cast_ref[...] = kernel_ref[...].astype(cast_ref.dtype)

    @pl.when(has_tokens)
    def _():
        best, best_id, true = best_ref[rows, :], best_id_ref[rows, :], true_ref[rows, :]
        total, wanted = total_ref[rows, :], ids_ref[rows, :]
        logits = functools.partial(_logits, x_ref, rows, cast_ref, bias_ref)
        for tile, pieces in _one_ahead(_tiles(cast_ref), logits):
            old_best = best
            for number, values in enumerate(pieces):
                here = _lane_ids(first, tile.start + number * LANES)
                is_better = values > best
                best, best_id = (
                    jnp.where(is_better, values, best),
                    jnp.where(is_better, here, best_id),
                )
                true = true + jnp.where(here == wanted, values, 0.0)
            total = total * jnp.exp(old_best - best)
            for values in pieces:
                total = total + jnp.exp(values - best)
        best_ref[rows, :], best_id_ref[rows, :], true_ref[rows, :] = best, best_id, true
        total_ref[rows, :] = total


def _backward_kernel(
    num_counted_ref,
    x_ref,
    x_transposed_ref,
    ids_ref,
    logsumexp_ref,
    scale_ref,
    kernel_ref,
    bias_ref,
    dx_ref,
    dkernel_ref,
    dbias_ref,
    cast_ref,
    sum_ref,
):
    """Computes the logits' gradients and, from them, those of tokens, kernel and bias."""
    starts, is_new, has_tokens, rows = _place(num_counted_ref)
    first = pl.program_id(0) * kernel_ref.shape[1]

    @pl.when(starts)
    def _():
        dx_ref[...] = jnp.zeros(dx_ref.shape, jnp.float32)

    @pl.when(is_new)
    def _():
        cast_ref[...] = kernel_ref[...].astype(cast_ref.dtype)
        sum_ref[...] = jnp.zeros(sum_ref.shape, jnp.float32)
        dbias_ref[...] = jnp.zeros(dbias_ref.shape, jnp.float32)

    @pl.when(has_tokens)
    def _():
        logsumexp, scale, wanted = logsumexp_ref[rows, :], scale_ref[rows, :], ids_ref[rows, :]
        dx = dx_ref[rows, :]
        logits = functools.partial(_logits, x_ref, rows, cast_ref, bias_ref)
        for tile, pieces in _one_ahead(_tiles(cast_ref), logits):
            dlogits = []
            for number, values in enumerate(pieces):
                is_true = _lane_ids(first, tile.start + number * LANES) == wanted
                probs = jnp.exp(values - logsumexp)
                dlogits.append(jnp.where(is_true, probs - 1.0, probs) * scale)
            dlogits = jnp.concatenate(dlogits, axis=1)
            dbias_ref[:, tile] += dlogits.sum(axis=0, keepdims=True)
            dlogits = dlogits.astype(x_ref.dtype)
            dx += jax.lax.dot_general(
                dlogits,
                cast_ref[:, tile],
                (((1,), (1,)), ((), ())),
                preferred_element_type=jnp.float32,
            )
            sum_ref[:, tile] += jnp.dot(
                x_transposed_ref[:, rows], dlogits, preferred_element_type=jnp.float32
            )
        dx_ref[rows, :] = dx

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def _():
        dkernel_ref[...] = sum_ref[...].astype(dkernel_ref.dtype)
