"""The share of a process in each batch: the parts that its devices hold."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Int, PyTree

from m3ae_tpu.errors import require
from m3ae_tpu.parallel.mesh import num_batch_shards


class Share(NamedTuple):
    """The equal parts of a global batch, counted in the order of its rows, that a process makes."""

    parts: tuple[int, ...] = (0,)
    """Those that lie on its devices, in order. Neighbours on a chip's network may be far apart."""
    num_parts: int = 1
    is_first: bool = True
    """False where a process with a lower number makes the same parts: they count once."""


WHOLE = Share()
"""The share of a process that is alone."""


def share_of(mesh: Mesh) -> Share:
    """Returns this process's share in the batches of a mesh."""
    holders = [device.process_index for device in mesh.devices.flat]
    by_part = np.array(holders).reshape(num_batch_shards(mesh), -1)
    return share_in(by_part, jax.process_index())


def share_in(holders: Int[np.ndarray, "parts copies"], process: int) -> Share:
    """Returns a process's share where these processes hold the copies of each part.

    Raises:
        UserError: it makes some of its parts with other processes than the rest.
    """
    is_held = (holders == process).any(axis=1)
    is_first = holders[is_held].min(axis=1) == process
    require(
        bool(is_first.all() or not is_first.any()),
        "mesh.tensor spreads the rows of a process over parts of others. "
        "Set --mesh.tensor to a divisor or a multiple of the devices of a process.",
    )
    return Share(tuple(np.flatnonzero(is_held).tolist()), len(holders), bool(is_first.all()))


def global_batch(sharding: NamedSharding, local: PyTree) -> PyTree:
    """Returns a batch on the mesh, from the NumPy rows of this process's share."""
    if jax.process_count() == 1:
        return jax.tree.map(lambda rows: jax.device_put(rows, sharding), local)
    assert isinstance(sharding.mesh, Mesh)
    share = share_of(sharding.mesh)

    def place(rows: np.ndarray) -> jax.Array:
        size = len(rows) // len(share.parts)

        def part(index: Any) -> np.ndarray:
            start = share.parts.index((index[0].start or 0) // size) * size
            return rows[start : start + size]

        shape = (size * share.num_parts, *rows.shape[1:])
        return jax.make_array_from_callback(shape, sharding, part)

    return jax.tree.map(place, local)


def known_batch(sharding: NamedSharding, rows: PyTree) -> PyTree:
    """Returns a batch for the mesh from NumPy rows that every process has whole."""
    if jax.process_count() == 1:
        return rows  # JAX places them when the program starts.
    return jax.tree.map(
        lambda array: jax.make_array_from_callback(array.shape, sharding, array.__getitem__), rows
    )


def in_order[Item](shares: Sequence[Share], items: Sequence[Sequence[Item]]) -> list[Item]:
    """Returns the items of all rows in the order of the batch, from those of each process."""
    by_part: dict[int, Sequence[Item]] = {}
    for share, of_process in zip(shares, items, strict=True):
        size = len(of_process) // len(share.parts)
        for place, part in enumerate(share.parts):
            by_part.setdefault(part, of_process[place * size : (place + 1) * size])
    return [item for part in sorted(by_part) for item in by_part[part]]


def as_numpy(tree: Any) -> Any:
    """Returns arrays of a mesh as NumPy arrays, in every process; all must call it together."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, tree)
    return multihost_utils.process_allgather(tree, tiled=True)
