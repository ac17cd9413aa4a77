"""Matrix products of activations with kernels that devices share, and their gradients."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from m3ae_tpu.parallel import rules
from m3ae_tpu.parallel.mesh import BATCH, FSDP


def product(x: Array, kernel: Array, bias: Array) -> Array:
    """Computes x @ kernel + bias in the dtype of x."""
    unit_axes = (None,) * (x.ndim - 1)
    return x @ kernel.astype(x.dtype) + bias.astype(x.dtype)[unit_axes]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def add_bias(y: Array, bias: Array, sum_of_rows: Callable[[Array], Array]) -> Array:
    """Computes y + bias; `sum_of_rows` gives the bias's gradient."""
    return y + bias.astype(y.dtype)[None, None]


def _add_bias_forward(y: Array, bias: Array, sum_of_rows: Callable):
    return add_bias(y, bias, sum_of_rows), bias


def _add_bias_backward(sum_of_rows: Callable, bias: Array, dy: Array):
    return dy, sum_of_rows(dy).astype(bias.dtype)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


class Layout(NamedTuple):
    """Places of a kernel on a mesh."""

    used: NamedSharding
    """In a product: gathered over `fsdp`."""
    kept: NamedSharding
    """Between products; its gradient too."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def product_of_gathered(
    x: Array, kernel: Array, bias: Array, layout: Layout | None, has_wide_sums: bool
) -> Array:
    """Computes `product`; the kernel is gathered for it, and again for its gradient.

    Args:
        x: Rows, with one leading axis or more.
        kernel: A matrix.
        bias: Added.
        layout: Places of the kernel; None leaves them to the compiler.
        has_wide_sums: Devices add up the gradient in the kernel's dtype, not in that of x.
    """
    return product(x, _gathered(x, kernel, layout), bias)


def _product_forward(x, kernel, bias, layout, has_wide_sums):
    return product_of_gathered(x, kernel, bias, layout, has_wide_sums), (x, kernel, bias)


def _product_backward(layout, has_wide_sums, saved, dy: Array) -> tuple[Array, Array, Array]:
    x, kernel, bias = saved
    axes = tuple(range(x.ndim - 1))
    contract = functools.partial(
        jax.lax.dot_general,
        dimension_numbers=((axes, axes), ((), ())),
        preferred_element_type=kernel.dtype if has_wide_sums else x.dtype,
    )
    dkernel = contract(x, dy) if layout is None else _summed(contract, x, dy, layout)
    dbias = jax.lax.reduce_sum(dy.astype(bias.dtype if has_wide_sums else dy.dtype), axes=axes)
    dx = dy @ _gathered(x, kernel, layout).T
    return dx, dkernel.astype(kernel.dtype), dbias.astype(bias.dtype)


def _summed(contract: Callable, x: Array, dy: Array, layout: Layout) -> Array:
    """Contracts all rows of x and dy; a device gets its part of the sum alone."""
    mesh, (inputs, outputs) = layout.used.mesh, layout.used.spec
    scattered = rules.axis_of(FSDP, layout.kept.spec) if mesh.shape[FSDP] > 1 else None

    def of_own_rows(x: Array, dy: Array) -> Array:
        own, summed = contract(x, dy), [axis for axis in BATCH if mesh.shape[axis] > 1]
        if scattered is not None:
            own = jax.lax.psum_scatter(own, FSDP, scatter_dimension=scattered, tiled=True)
            summed.remove(FSDP)
        return jax.lax.psum(own, summed) if summed else own

    tokens = (None,) * (x.ndim - 2)
    return jax.shard_map(
        of_own_rows,
        mesh=mesh,
        in_specs=(PartitionSpec(BATCH, *tokens, inputs), PartitionSpec(BATCH, *tokens, outputs)),
        out_specs=layout.kept.spec,
        check_vma=False,
    )(x, dy)


product_of_gathered.defvjp(_product_forward, _product_backward)


def _gathered(x: Array, kernel: Array, layout: Layout | None) -> Array:
    kernel = kernel.astype(x.dtype)
    return kernel if layout is None else jax.lax.with_sharding_constraint(kernel, layout.used)
