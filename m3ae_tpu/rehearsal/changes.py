"""Changes of a config that make its step fit a slice, found by compiling it with each of them."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.config.tree import replaced
from m3ae_tpu.errors import UserError
from m3ae_tpu.rehearsal.estimates import Figures, collective_seconds
from m3ae_tpu.rehearsal.topologies import Slice

type Fields = Mapping[str, Any]
"""Values of fields by dotted name."""

_FSDP, _ACCUMULATION, _REMAT = "mesh.fsdp", "optimizer.accumulation_steps", "model.remat"
_MARGIN = 0.95
"""Share of the memory that a guess may fill: it leaves out gradients and padding."""
_TRIES_OF_A_KIND = 2


class Change(NamedTuple):
    """Fields to set, and what they cost by a guess that decides the order of the tries only."""

    fields: Fields
    seconds: float

    @property
    def flags(self) -> str:
        return flags_of(self.fields)


def flags_of(fields: Fields) -> str:
    """Returns fields as a command line sets them."""
    return " ".join(f"--{name}={str(value).lower()}" for name, value in fields.items())


def fitting_changes(
    config: PretrainConfig,
    on: Slice,
    refused: Figures,
    rehearse: Callable[[PretrainConfig], Figures],
    *,
    wanted: int = 2,
) -> list[tuple[Change, Figures]]:
    """Returns the cheapest changes with which the step fits, each with the figures of its try.

    Changes of one field come before those of two. Of each kind the cheapest that fits is kept.

    Args:
        config: Settings whose step does not fit.
        on: The slice.
        refused: The figures of its rehearsal.
        rehearse: Compiles the step of other settings.
        wanted: Changes to find; fewer where fewer fit.
    """
    found: list[tuple[Change, Figures]] = []
    singles, pairs = _candidates(config, on, refused)
    for candidates in (singles, pairs):
        tried: dict[tuple, int] = {}
        for change in sorted(candidates, key=lambda change: change.seconds):
            kind = tuple(sorted(change.fields))
            has_fit = any(tuple(sorted(other.fields)) == kind for other, _ in found)
            if has_fit or tried.get(kind, 0) == _TRIES_OF_A_KIND:
                continue
            tried[kind] = tried.get(kind, 0) + 1
            try:
                figures = rehearse(replaced(config, change.fields))
            except UserError:  # The mesh or the batch does not divide so.
                continue
            if figures["fits"]:
                found.append((change, figures))
            if len(found) == wanted:
                return found
    return found


def _candidates(
    config: PretrainConfig, on: Slice, refused: Figures
) -> tuple[list[Change], list[Change]]:
    """Returns changes of one field, and of two, that might fit by a guess from the refusal."""
    room = _MARGIN * refused["capacity_bytes_per_chip"]
    state = refused["parameter_bytes_per_chip"] + refused["optimizer_bytes_per_chip"]
    rest = refused["peak_bytes_per_chip"] - state
    mesh, slices = refused["mesh"], on.num_slices
    # Matrices in two bytes a parameter, for each pass over the network.
    matrices = refused["parameter_bytes_per_chip"] * mesh["fsdp"] // 2
    sums = collective_seconds("all-reduce", "data+fsdp", matrices, mesh, on)
    compute = refused["model_flops_per_chip"] / on.chip.flops
    devices = mesh["data"] * mesh["fsdp"]
    rows = config.batch_size // devices // config.optimizer.accumulation_steps

    sharded: list[tuple[Fields, float, float, float]] = []
    for size in _doubled(mesh["fsdp"], devices // slices):
        # More devices than a side of the slice gather no quicker, whatever the links could do.
        grid = dict(mesh) | {"data": devices // size, "fsdp": min(size, max(on.shape))}
        seconds = 3 * collective_seconds("all-gather", "fsdp", matrices, grid, on)
        fields = {_FSDP: size} | ({"mesh.data": -1} if config.mesh.data != -1 else {})
        sharded.append((fields, seconds, mesh["fsdp"] / size, 1.0))
    sliced: list[tuple[Fields, float, float, float]] = []
    for factor in _doubled(1, rows):
        steps = config.optimizer.accumulation_steps * factor
        sliced.append(({_ACCUMULATION: steps}, (factor - 1) * sums, 1.0, 1 / factor))
    # A guess for the share of activations that remat leaves; that it is tried decides.
    repeated = [] if config.model.remat else [({_REMAT: True}, compute / 3, 1.0, 0.3)]

    def fits(option: tuple[Fields, float, float, float]) -> bool:
        return state * option[2] + rest * option[3] <= room

    singles = [
        Change(option[0], option[1]) for option in (*sharded, *sliced, *repeated) if fits(option)
    ]
    if repeated and not fits(repeated[0]):
        singles.append(Change(repeated[0][0], repeated[0][1]))
    pairs = []
    for one, other in itertools.combinations((sharded, sliced, repeated), 2):
        for first, second in itertools.product(one, other):
            both = (first[0], 0.0, first[2] * second[2], first[3] * second[3])
            if fits(both):
                pairs.append(Change({**first[0], **second[0]}, first[1] + second[1]))
    return singles, pairs


def _doubled(now: int, most: int) -> Iterator[int]:
    """Yields 2, 4, 8, ... times `now`, as far as they divide `most`."""
    size = 2 * now
    while size <= most and most % size == 0:
        yield size
        size *= 2


def grid_of_sweep(config: PretrainConfig, on: Slice) -> list[Fields]:
    """Returns the mesh shapes and remat settings that a sweep compares."""
    in_slice = on.num_chips // on.num_slices
    heads = (config.model.encoder.num_heads, config.model.decoder.num_heads)
    shapes = [(fsdp, 1) for fsdp in (1, 4, 16, 64) if in_slice % fsdp == 0]
    if (
        in_slice % 2 == 0
        and all(count % 2 == 0 for count in heads)
        and not config.model.vocab_size % 2
    ):
        shapes.append((1, 2))
    return [
        {"mesh.data": -1, _FSDP: fsdp, "mesh.tensor": tensor, _REMAT: remat}
        for fsdp, tensor in shapes
        for remat in (False, True)
    ]
