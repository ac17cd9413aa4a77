"""Slices of TPUs by the compiler's names, such as `v5e:16x16`, and what is known of them."""

import math
import re
from typing import Any, NamedTuple

from m3ae_tpu.errors import UserError, require
from m3ae_tpu.kernels.chips import CHIPS, Chip
from m3ae_tpu.parallel.slices import GENERATIONS, find_slice

_GIB = 2**30


class Hardware(NamedTuple):
    """Facts of a generation of TPUs beyond the tables of chips and of slices."""

    largest: tuple[int, ...]
    """Chips of the largest slice along each axis of the network."""
    capacity_bytes: int
    """Memory that the compiler gives to a program, as its refusals say."""
    link_bytes_per_second: float
    """One link of the chips' network (ICI) in one direction; each axis has two links a chip."""
    slice_bytes_per_second: float
    """A chip's share of its host's way to other slices (DCN), in one direction."""
    ring: int
    """An axis whose number of chips is a multiple of this one closes to a ring."""
    clock_hz: float
    """Cycles/s: peak FLOP/s over the work of a core's matrix units in a cycle."""
    matrix_unit: int
    """Side of a matrix unit: a head of fewer channels leaves the rest of it idle."""


HARDWARE = {
    "v4": Hardware((16, 16, 16), round(30.75 * _GIB), 45e9, 6.25e9, 4, 1.05e9, 128),
    "v5e": Hardware((16, 16), round(15.75 * _GIB), 45e9, 3.125e9, 16, 1.50e9, 128),
    "v5p": Hardware((16, 20, 28), round(95.73 * _GIB), 90e9, 6.25e9, 4, 1.75e9, 128),
    "v6e": Hardware((16, 16), round(31.24 * _GIB), 90e9, 12.5e9, 16, 1.75e9, 256),
}
"""Bandwidths: "How to Scale Your Model" (jax-ml.github.io/scaling-book), chapter on TPUs."""

ROUTE = "Write it as v5e:16x16 or v4:4x4x8; v5e:16x16x2slices for several slices."


class Slice(NamedTuple):
    """Chips of one kind, in one or several slices of one shape."""

    generation: str
    shape: tuple[int, ...]
    num_slices: int

    @property
    def name(self) -> str:
        slices = f"x{self.num_slices}slices" if self.num_slices > 1 else ""
        return f"{self.generation}:{'x'.join(map(str, self.shape))}{slices}"

    @property
    def chip(self) -> Chip:
        return CHIPS[self.generation]

    @property
    def num_chips(self) -> int:
        return math.prod(self.shape) * self.num_slices

    def axis_bytes_per_second(self, num_devices: int) -> float:
        """Returns the bytes a second that a chip sends along a mesh axis, all its links together.

        The axis takes as few axes of the network as hold it, the longest first. One that closes to
        a ring sends both ways at once.
        """
        facts, held, total = HARDWARE[self.generation], 1, 0.0
        for length in sorted(self.shape, reverse=True):
            is_ring = length % facts.ring == 0 and num_devices >= length
            total += facts.link_bytes_per_second * (2 if is_ring else 1)
            held *= length
            if held >= num_devices:
                break
        return total

    def devices(self) -> list[Any]:
        """Returns the described devices: programs compile for them, none runs on them.

        Raises:
            UserError: the compiler does not describe such a slice.
        """
        import jax
        from jax.experimental import topologies

        chip_config = GENERATIONS[self.generation].chip_config
        options: dict[str, Any] = {"chip_config_name": chip_config} if chip_config else {}
        shape = self.shape
        if self.num_slices > 1:
            options["num_slices"] = self.num_slices
        if math.prod(shape) == 1:
            shape, options["chips_per_host_bounds"] = (1, 1, 1), (1, 1, 1)
        name = f"{self.generation}:{'x'.join(map(str, shape))}"
        try:
            described = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
        except jax.errors.JaxRuntimeError as error:
            reason = str(error).partition(": ")[2].splitlines()[0]
            raise UserError(
                f"--topology = {self.name} is not a slice that the TPU compiler describes "
                f"({reason}). Name a shape of even sides, as {self.generation}:4x4."
            ) from None
        return list(described.devices)


def parse_slice(text: str) -> Slice:
    """Returns the slice of a name.

    Raises:
        UserError: no generation, or no shape that its network has.
    """
    match = re.fullmatch(r"(\w+)[:=]([\dx]+?)(?:x(\d+)slices?)?", text.strip())
    if match is None:
        raise UserError(f"--topology = {text} is not a slice of TPUs. {_rented(text) or ROUTE}")
    generation, sides, slices = match.groups()
    known = ", ".join(HARDWARE)
    require(
        generation in HARDWARE,
        f"--topology = {text}: {generation!r} is not one of {known}. {ROUTE}",
    )
    shape = tuple(int(side) for side in sides.split("x") if side)
    largest = HARDWARE[generation].largest
    is_shape = len(shape) == len(largest) and all(
        1 <= side <= most for side, most in zip(sorted(shape), sorted(largest), strict=True)
    )
    require(
        is_shape,
        f"--topology = {text}: a slice of {generation} has {len(largest)} sides, at most "
        f"{'x'.join(map(str, largest))}. {ROUTE}",
    )
    num_slices = int(slices or 1)
    require(
        1 <= num_slices <= 64, f"--topology = {text}: {num_slices} slices are not 1 to 64. {ROUTE}"
    )
    return Slice(generation, shape, num_slices)


def _rented(text: str) -> str:
    """Returns the name to write for a slice that is named as it is rented, or ""."""
    generation, dash, count = text.strip().partition("-")
    if generation in GENERATIONS:  # As v5e-256, which is rented as v5litepod-256.
        generation = GENERATIONS[generation].accelerator
    try:
        return f"Did you mean {find_slice(generation + dash + count).topology}?"
    except UserError:
        return ""
