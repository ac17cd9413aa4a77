"""The one table of chips: how JAX and the TPU compiler name them, and what their makers promise."""

from typing import NamedTuple


class Chip(NamedTuple):
    """One chip, which JAX shows as one device; figures are those of the data sheet."""

    device_kind: str
    """As JAX names the device."""
    flops: float
    """Peak FLOP/s of dense matrix products in bfloat16."""
    bytes_per_second: float
    """Peak memory traffic."""
    hbm_bytes: int
    """Memory of the chip."""
    cores: int = 1
    """Cores that share a program: the grid of a kernel is split among them."""
    vmem_bytes: int | None = None
    """On-chip memory of a core that kernels place blocks in; None for GPUs."""
    topology: str = ""
    """The smallest slice that libtpu describes; empty for GPUs."""
    clock_hz: float | None = None
    """Cycles/s of the TPU compiler's replay; None where the replay does not run. It is peak FLOP/s
    over the work of a core's matrix units in a cycle.
    """

    @property
    def core_flops(self) -> float:
        return self.flops / self.cores

    @property
    def core_bytes_per_second(self) -> float:
        return self.bytes_per_second / self.cores


_GIB = 2**30
_MIB = 2**20

CHIPS = {
    "v4": Chip("TPU v4", 275e12, 1228e9, 32 * _GIB, 2, 16 * _MIB, "v4:2x2x1"),
    "v5e": Chip("TPU v5 lite", 197e12, 819e9, 16 * _GIB, 1, 128 * _MIB, "v5e:2x2", 1.50e9),
    "v5p": Chip("TPU v5", 459e12, 2765e9, 95 * _GIB, 2, 64 * _MIB, "v5p:2x2x1", 1.75e9),
    "v6e": Chip("TPU v6 lite", 918e12, 1640e9, 32 * _GIB, 1, 128 * _MIB, "v6e:2x2", 1.75e9),
    "h100": Chip("NVIDIA H100 80GB HBM3", 989e12, 3350e9, 80 * _GIB),
    "h200": Chip("NVIDIA H200", 989e12, 4800e9, 141 * 10**9),
    "a100": Chip("NVIDIA A100-SXM4-80GB", 312e12, 2039e9, 80 * _GIB),
}
"""By the names that flags and tables use."""

REPLAYED = tuple(name for name, chip in CHIPS.items() if chip.clock_hz)
"""Chips that the TPU compiler's replay counts cycles for."""

GPUS = tuple(name for name, chip in CHIPS.items() if chip.device_kind.startswith("NVIDIA"))
"""Chips that XLA compiles for from a description, see `measure.gpu_compiler`."""


def chip_name(device_kind: str | None) -> str | None:
    """Returns the chip's name in `CHIPS`, or None for a device that is not in the table."""
    names = {chip.device_kind: name for name, chip in CHIPS.items()}
    return names.get(device_kind or "")
