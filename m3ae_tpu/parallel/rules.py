"""The table that says how parameters and their optimizer moments lie on a mesh, by their names.

FSDP cuts every matrix along one axis, so that each device holds its share; a block's matrices are
gathered when the block is computed. Tensor parallelism cuts heads, hidden channels and vocabulary.
The axis of a stack's layers is never cut: the loop over layers would gather the whole stack.
"""

import math
import re
from typing import NamedTuple

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from m3ae_tpu.errors import require
from m3ae_tpu.parallel.mesh import FSDP, TENSOR


class Rule(NamedTuple):
    """The cuts of arrays whose dotted name ends in a pattern."""

    name: str
    """Regular expression; it must match up to the name's end, from one of its dots on."""
    axes: tuple[str | tuple[str, ...] | None, ...]
    """The mesh axis or axes that cut each axis of the array, or None."""
    layers: int = 0
    """Leading axes that are never cut: those of a stack of layers."""


RULES = (
    Rule(r"blocks\.attention_in\.kernel", (None, FSDP, None, TENSOR), layers=1),
    Rule(r"blocks\.attention_in\.bias", (None, None, TENSOR), layers=1),
    Rule(r"blocks\.attention_out\.kernel", (None, TENSOR, FSDP), layers=1),
    Rule(r"blocks\.mlp_in\.kernel", (None, FSDP, TENSOR), layers=1),
    Rule(r"blocks\.mlp_in\.bias", (None, TENSOR), layers=1),
    Rule(r"blocks\.mlp_out\.kernel", (None, TENSOR, FSDP), layers=1),
    Rule(r"decoder_input\.kernel", (FSDP, None)),
    Rule(r"image\.embedding\.kernel", (FSDP, None)),
    Rule(r"image\.head\.kernel", (FSDP, None)),
    Rule(r"text\.embedding\.table", ((TENSOR, FSDP), None)),
    Rule(r"text\.head\.kernel", (FSDP, TENSOR)),
    Rule(r"text\.head\.bias", (TENSOR,)),
    Rule(r"class_head\.kernel", (FSDP, None)),
    Rule(r"(image|text)\.(decoder_)?positions", (None, FSDP)),
)
"""Arrays that no rule names are whole on every device: norms, most biases, small vectors, counts.
"""

LARGE_BYTES = 2**20
"""A matrix of at most so many bytes may stay whole where FSDP divides none of its axes; of a larger
one this is refused.
"""


def rule_of(name: str) -> Rule | None:
    """Returns the rule of an array by its dotted name, as `encoder.blocks.mlp_in.kernel`."""
    return next((rule for rule in RULES if re.search(rf"(^|\.){rule.name}$", name)), None)


def spec(
    name: str, shape: tuple[int, ...], itemsize: int, mesh: Mesh | AbstractMesh
) -> PartitionSpec:
    """Returns how an array lies on the mesh.

    Where FSDP does not divide the axis of the rule, it falls to the longest other axis that it
    divides.

    Raises:
        UserError: tensor parallelism does not divide its axis, or FSDP none of a large array.
    """
    rule = rule_of(name)
    if rule is None:
        return PartitionSpec()
    missing = len(rule.axes) - len(shape)  # One layer of a stack has no axis of layers.
    rule = Rule(rule.name, rule.axes[missing:], rule.layers - missing)
    tensor, fsdp = mesh.shape[TENSOR], mesh.shape[FSDP]
    parts: list[tuple[str, ...]] = [(TENSOR,) if cuts(TENSOR, axis) else () for axis in rule.axes]
    room = [size // (tensor if cut else 1) for size, cut in zip(shape, parts, strict=True)]
    for axis, cut in enumerate(parts):
        require(
            not cut or shape[axis] % tensor == 0,
            f"mesh.tensor = {tensor} does not divide axis {axis} of {name} {list(shape)}. "
            f"Set --mesh.tensor to a divisor of {shape[axis]}.",
        )
    preferred = next((axis for axis, cut in enumerate(rule.axes) if cuts(FSDP, cut)), None)
    if preferred is not None:
        others = sorted(range(rule.layers, len(shape)), key=lambda axis: -room[axis])
        fitting = [axis for axis in (preferred, *others) if room[axis] % fsdp == 0]
        require(
            bool(fitting) or math.prod(shape) * itemsize <= LARGE_BYTES,
            f"mesh.fsdp = {fsdp} divides no axis of {name} {list(shape)}. "
            f"Set --mesh.fsdp to a divisor of {shape[preferred]}.",
        )
        if fitting:
            parts[fitting[0]] += (FSDP,)
    return PartitionSpec(*(cut[0] if len(cut) == 1 else cut or None for cut in parts))


def axis_of(name: str, spec: PartitionSpec) -> int | None:
    """Returns the axis of an array that a mesh axis cuts, or None."""
    return next((axis for axis, cut in enumerate(spec) if cuts(name, cut)), None)


def cuts(name: str, cut: str | tuple[str, ...] | None) -> bool:
    """Returns whether a mesh axis is in an entry of a `PartitionSpec`."""
    return cut == name or (isinstance(cut, tuple) and name in cut)


def state_shardings(state: PyTree, mesh: Mesh | AbstractMesh) -> PyTree:
    """Returns the sharding of each array of a train state or model, by `RULES`.

    Args:
        state: Arrays, or `jax.ShapeDtypeStruct`s.
        mesh: With the axes `data`, `fsdp` and `tensor`.

    Raises:
        UserError: an array does not divide over the mesh.
    """

    def sharding(path, leaf) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return NamedSharding(mesh, spec(name, leaf.shape, leaf.dtype.itemsize, mesh))

    return jax.tree_util.tree_map_with_path(sharding, state)


def placed(abstract: PyTree, shardings: PyTree) -> PyTree:
    """Returns abstract arrays with their shardings: what a checkpoint is restored into."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings,
    )
