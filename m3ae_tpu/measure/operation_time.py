"""Time of an operation on a described TPU, of which the compiler's replay did not count the cycles.

Two figures bound it. The floor takes work as the replay of operations like it says: it waits for no
memory and has no gaps. The ceiling takes the cycles that the compiler estimated to choose a tiling.
These hold a charge for each element of the result, whatever unit computes it: they rank the tilings
of one product and are not a time.
"""

from m3ae_tpu.kernels.chips import CHIPS
from m3ae_tpu.measure.hlo_text import Operation

PRODUCT_SHARE = {"v4": 0.886, "v5e": 0.886, "v5p": 0.886, "v6e": 0.74}
"""Share of a core's peak FLOP/s that products reach in the replay: on v5e 86 to 96 %, also with a
bias, GELU or its gradient in their fusion. v4 and v5p, which were not replayed, have units of that
size. On v6e it is a product with a bias; with GELU's gradient it takes up to twice as long.
"""
ESTIMATE_OVER_REPLAY = 4.0
"""Estimated over replayed cycles of elementwise operations and norms (v5e: 3.8 to 6.9)."""
SUM_FROM_HBM, SUM_FROM_VMEM = 3.2, 11.0
"""The same of sums over rows. From HBM they read windows of 64 rows, each of which is waited for.
"""
REPLAYED_ALONE = {
    "product with a bias, [20480, 512] x [512, 2048]": "products: a share of the peak",
    "GELU of [20480, 2048]": "elementwise operations: a share of the estimate",
    "norm of [20480, 512]": "norms: the same share",
    "sum over rows of [20480, 1536]": "sums over rows: another share, from HBM or VMEM",
}
"""Lone bfloat16 operations whose replay on v5e the shares above are from, and where they count."""


def floor_us(chip: str, operation: Operation) -> float:
    """Returns the microseconds of one run without gaps: the larger of work and memory traffic.

    Args:
        chip: A TPU of `CHIPS` that the replay runs for.
        operation: Its replayed cycles are taken where it has them.
    """
    described = CHIPS[chip]
    assert described.clock_hz is not None
    memory = operation.hbm_bytes / described.core_bytes_per_second
    rate = PRODUCT_SHARE[chip] * described.core_flops
    return max(memory, floor_of_work(operation, described.clock_hz, rate)) * 1e6


def floor_of_work(operation: Operation, clock_hz: float, product_rate: float) -> float:
    """Returns the seconds of one run without its memory traffic, as replays say.

    Args:
        operation: Its replayed cycles are taken where it has them.
        clock_hz: Cycles/s.
        product_rate: FLOP/s that products reach.
    """
    if operation.cycles is not None:
        return operation.cycles / clock_hz
    if operation.product_flops:
        return operation.product_flops / product_rate
    ratio = ESTIMATE_OVER_REPLAY
    if operation.sums_rows:
        ratio = SUM_FROM_HBM if operation.reads_hbm else SUM_FROM_VMEM
    return (operation.estimated_cycles or 0) / ratio / clock_hz


def ceiling_us(chip: str, operation: Operation) -> float:
    """Returns the microseconds of one run with the cycles that the compiler estimated."""
    described = CHIPS[chip]
    assert described.clock_hz is not None
    cycles = operation.cycles
    if cycles is None:
        cycles = operation.estimated_cycles or 0
    memory = operation.hbm_bytes / described.core_bytes_per_second
    return max(memory, cycles / described.clock_hz) * 1e6
