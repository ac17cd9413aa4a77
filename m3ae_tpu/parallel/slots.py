"""Gradients of layers in a scan, written where nothing was cleared first.

A scan stacks the gradients of its layers, step by step, in arrays that JAX fills with zeros before.
Here each step puts its layer's gradient into stacks that are empty at first:

    slots = empty_slots(layers, empty)
    (x, slots), _ = jax.lax.scan(step, (x, slots), (jax.lax.stop_gradient(layers), numbers))
    x = filled_slots(x, slots, empty)

where each step begins with `layer, slots = put(layer, slots, number)`. Forward the slots are never
touched. Their cotangent is what the backward pass carries from layer to layer: `filled_slots` hands
it out empty, and `empty_slots` takes it as the gradient of the layers.
"""

import functools
from collections.abc import Callable

import jax
from jaxtyping import Array, Int, PyTree

type Empty = Callable[[PyTree], PyTree]
"""Returns arrays of the shapes and dtypes of others, whose values do not matter."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def empty_slots(layers: PyTree, empty: Empty) -> PyTree:
    """Returns slots for the gradients of layers, arrays whose first axis counts layers."""
    return empty(layers)


empty_slots.defvjp(
    lambda layers, empty: (empty(layers), None), lambda empty, _, gradients: (gradients,)
)


def put[Layer](
    layer: Layer, slots: PyTree | None, number: Int[Array, ""] | None
) -> tuple[Layer, PyTree | None]:
    """Returns layer and slots as they are; the layer's gradient goes to its number in the slots.

    Without slots it stays where it is.
    """
    return (layer, None) if slots is None else _put(layer, slots, number)


@jax.custom_vjp
def _put(layer: PyTree, slots: PyTree, number: Array) -> tuple[PyTree, PyTree]:
    return layer, slots


def _put_forward(layer: PyTree, slots: PyTree, number: Array):
    return (layer, slots), number


def _put_backward(number: Array, gradients: tuple[PyTree, PyTree]):
    of_layer, of_slots = gradients
    filled = jax.tree.map(
        lambda slot, gradient: jax.lax.dynamic_update_index_in_dim(slot, gradient, number, 0),
        of_slots,
        of_layer,
    )
    return None, filled, None


_put.defvjp(_put_forward, _put_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def filled_slots(x: Array, slots: PyTree, empty: Empty) -> Array:
    """Returns x, the result of all layers, whose gradients fill the slots."""
    return x


filled_slots.defvjp(
    lambda x, slots, empty: (x, slots), lambda empty, slots, gradient: (gradient, empty(slots))
)
