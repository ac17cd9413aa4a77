"""The one table of TPU slices: how they are rented, how the TPU compiler names them, what they are.

Imports no JAX: it is read on machines that only start runs.
"""

import math
import re
from typing import NamedTuple

from m3ae_tpu.errors import UserError, require
from m3ae_tpu.kernels.chips import CHIPS


class Generation(NamedTuple):
    """One generation of TPUs."""

    accelerator: str
    """Beginning of the accelerator types of gcloud: `v5litepod` of `v5litepod-256`."""
    counts_cores: bool
    """True where accelerator types count TensorCores, two a chip; others count chips."""
    dimensions: int
    """Axes of its slices."""
    largest: int
    """Chips of its largest slice."""
    runtime_version: str
    """Software of its hosts, by the name that gcloud takes."""
    chip_config: str = ""
    """`chip_config_name` with which the compiler describes a chip as JAX shows it."""


class TpuSlice(NamedTuple):
    """One slice."""

    chip: str
    """Name in `kernels.chips.CHIPS`."""
    accelerator_type: str
    """Name that gcloud takes."""
    num_chips: int
    num_hosts: int
    topology: str
    """Name that the compiler takes."""
    chip_config: str
    """See `Generation`."""
    runtime_version: str
    """See `Generation`."""

    @property
    def chips_per_host(self) -> int:
        return self.num_chips // self.num_hosts

    @property
    def hbm_bytes(self) -> int:
        """Memory of a chip, as its maker states it."""
        return CHIPS[self.chip].hbm_bytes


GENERATIONS = {
    "v4": Generation("v4", True, 3, 4096, "tpu-ubuntu2204-base", "megacore"),
    "v5e": Generation("v5litepod", False, 2, 256, "v2-alpha-tpuv5-lite"),
    "v5p": Generation("v5p", True, 3, 6144, "v2-alpha-tpuv5"),
    "v6e": Generation("v6e", False, 2, 256, "v2-alpha-tpuv6e"),
}
"""By the names that `kernels.chips` uses."""
_HOST_CHIPS = 4
"""Chips of a host in a slice of several hosts."""


def find_slice(accelerator_type: str) -> TpuSlice:
    """Returns the slice that gcloud rents under a name.

    Raises:
        UserError: no generation has such a slice.
    """
    names = {generation.accelerator: chip for chip, generation in GENERATIONS.items()}
    found = re.fullmatch(r"(\w+)-(\d+)", accelerator_type)
    chip = names.get(found[1]) if found else None
    if found is None or chip is None:
        near = re.sub(r"^v5(e|lite)\b", "v5litepod", accelerator_type)
        hint = f"Did you mean {near}?" if near != accelerator_type else "Write v5litepod-256."
        raise UserError(f"--accelerator = {accelerator_type} is not of {', '.join(names)}. {hint}")
    generation, count = GENERATIONS[chip], int(found[2])
    sizes = _sizes(generation)
    per_chip = 2 if generation.counts_cores else 1
    if count not in [size * per_chip for size in sizes]:
        near = min(sizes, key=lambda size: abs(size * per_chip - count)) * per_chip
        unit = "TensorCores" if generation.counts_cores else "chips"
        raise UserError(
            f"--accelerator = {accelerator_type} is not a slice: {found[1]} counts {unit}. "
            f"The nearest slice is {found[1]}-{near}."
        )
    num_chips = count // per_chip
    # Slices of eight chips with two axes are one host of their own kind.
    num_hosts = 1 if num_chips <= 8 and generation.dimensions == 2 else num_chips // _HOST_CHIPS
    return TpuSlice(
        chip=chip,
        accelerator_type=accelerator_type,
        num_chips=num_chips,
        num_hosts=num_hosts,
        topology=f"{chip}:{'x'.join(map(str, _shape(num_chips, generation.dimensions)))}",
        chip_config=generation.chip_config,
        runtime_version=generation.runtime_version,
    )


def _sizes(generation: Generation) -> list[int]:
    """Returns the numbers of chips of the slices: the powers of two that hosts can make up."""
    smallest = [1, 4] if generation.dimensions == 2 else [4]
    more = range(3, int(math.log2(generation.largest)) + 1)
    return [*smallest, *(2**power for power in more)]


def _shape(num_chips: int, dimensions: int) -> list[int]:
    """Returns the default shape of a slice: sides as equal as powers of two can be, short first."""
    require(num_chips > 0, f"num_chips = {num_chips} is not positive.")
    if (num_chips, dimensions) == (_HOST_CHIPS, 3):  # One host is flat.
        return [2, 2, 1]
    power = int(math.log2(num_chips))
    return [2 ** ((power + place) // dimensions) for place in range(dimensions)]
