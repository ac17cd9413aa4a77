"""Figures of a run on a slice: those of the compiler, and what is estimated from them."""

from collections.abc import Iterable, Mapping
from typing import Any

from m3ae_tpu.batch import mixture
from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.rehearsal.collectives import BETWEEN_SLICES, Collective
from m3ae_tpu.rehearsal.compiled import Compiled
from m3ae_tpu.rehearsal.topologies import HARDWARE, Slice

type Figures = dict[str, Any]
"""Figures of a rehearsal by name, ready for JSON; `sources` says where each comes from."""

ROW_CPU_SECONDS = {"paired": 1.05e-3, "image": 1.04e-3, "text": 0.08e-3}
"""CPU time of the loader for a row of a kind, one core: photographs of 500x400 pixels, see
`docs/results/data.md`."""


def figures(config: PretrainConfig, on: Slice, compiled: Compiled) -> Figures:
    """Returns all figures of a rehearsal; those of time are None where the step was refused."""
    settings = {
        "topology": on.name,
        "chips": on.num_chips,
        "hosts": compiled.num_hosts,
        "mesh": compiled.mesh,
        "batch_size": config.batch_size,
        "remat": config.model.remat,
        "accumulation_steps": config.optimizer.accumulation_steps,
        "num_steps": config.num_steps,
        "num_parameters": compiled.num_parameters,
    }
    by_compiler = {
        "fits": compiled.fits,
        "peak_bytes_per_chip": compiled.peak_bytes,
        "capacity_bytes_per_chip": compiled.capacity_bytes,
        "argument_bytes_per_chip": compiled.argument_bytes,
        "collectives": grouped(compiled.collectives),
        "hbm_bytes": compiled.hbm_bytes,
        "compile_seconds": compiled.compile_seconds,
        "compiler_memory_bytes": compiled.compiler_memory_bytes,
    }
    # Sizes of a chip's pieces, without the padding of their tiles.
    in_use = compiled.parameter_bytes + compiled.optimizer_bytes + compiled.batch_bytes
    estimated = {
        "parameter_bytes_per_chip": compiled.parameter_bytes,
        "optimizer_bytes_per_chip": compiled.optimizer_bytes,
        "batch_bytes_per_chip": compiled.batch_bytes,
        "activation_bytes_per_chip": max(0, compiled.peak_bytes - in_use),
        "flops_per_chip": compiled.flops,
        "model_flops_per_chip": compiled.model_flops,
        **_times(config, on, compiled),
    }
    sources = dict.fromkeys(by_compiler, "compiler") | dict.fromkeys(estimated, "estimate")
    return {**settings, **by_compiler, **estimated, "sources": sources}


def grouped(found: Iterable[Collective]) -> list[dict[str, Any]]:
    """Returns the collectives with those of a kind, axis and place in one entry, largest first."""
    groups: dict[tuple, dict[str, Any]] = {}
    for line in found:
        stack = next((name for name in ("encoder", "decoder") if f"({name})" in line.source), "")
        direction = "backward" if "transpose(" in line.source else "forward"
        where = "in the loop" if line.is_in_loop else "outside"
        key = (line.kind, line.axis, where, stack, direction, line.dtypes, line.is_asynchronous)
        group = groups.setdefault(
            key,
            {
                "kind": line.kind,
                "axis": line.axis,
                "where": where,
                "stack": stack,
                "direction": direction,
                "dtype": line.dtypes,
                "is_asynchronous": line.is_asynchronous,
                "count": 0,
                "bytes": 0,
                "runs_per_step": 0,
                "bytes_per_step": 0,
            },
        )
        group["count"] += 1
        group["bytes"] += line.bytes
        group["runs_per_step"] += line.times
        group["bytes_per_step"] += line.times * line.bytes
    return sorted(groups.values(), key=lambda group: -group["bytes_per_step"])


def collective_seconds(
    kind: str, axis: str, num_bytes: int, mesh: Mapping[str, int], on: Slice
) -> float:
    """Returns the time of one collective at the links' bandwidth, without latencies.

    A gather or a scatter over n devices sends (n - 1) / n of its bytes through a chip's links, an
    all-reduce twice that, an all-to-all a quarter, a permutation all of them in one direction.

    Args:
        kind: As in `Collective`.
        axis: As in `Collective`; unknown groups count as all devices.
        num_bytes: As in `Collective`.
        mesh: Sizes of the mesh axes.
        on: The slice.
    """
    if axis == BETWEEN_SLICES:
        return num_bytes / HARDWARE[on.generation].slice_bytes_per_second
    num_devices = 1
    for name in mesh if axis == "?" else axis.split("+"):
        num_devices *= mesh[name] // (on.num_slices if name == "data" else 1)
    if num_devices == 1:
        return 0.0
    bandwidth = on.axis_bytes_per_second(num_devices)
    share = (num_devices - 1) / num_devices
    factor = {"all-reduce": 2 * share, "all-to-all": share / 4, "collective-permute": 2.0}
    return num_bytes * factor.get(kind, share) / bandwidth


def network_seconds(compiled: Compiled, on: Slice) -> tuple[float, float]:
    """Returns the times of a step's collectives: those that the compiler scheduled beside other
    work, and those that everything waits for.
    """
    overlapped, waited = 0.0, 0.0
    for line in compiled.collectives:
        seconds = line.times * collective_seconds(
            line.kind, line.axis, line.bytes, compiled.mesh, on
        )
        if line.is_asynchronous:
            overlapped += seconds
        else:
            waited += seconds
    return overlapped, waited


def step_seconds(compiled: Compiled, on: Slice, compute_seconds: float | None) -> float | None:
    """Returns the time of a step: operations one after the other, with the collectives that the
    compiler scheduled beside them, then those that everything waits for.
    """
    if compute_seconds is None:
        return None
    overlapped, waited = network_seconds(compiled, on)
    return max(compute_seconds, overlapped) + waited


def least_seconds(compiled: Compiled, on: Slice) -> float | None:
    """Returns what no schedule of the same work can be quicker than: matrix products at the peak,
    memory traffic or collectives, whichever takes longest.
    """
    if compiled.hbm_bytes is None:
        return None
    return max(
        compiled.flops / on.chip.flops,
        compiled.hbm_bytes / on.chip.bytes_per_second,
        *network_seconds(compiled, on),
    )


def _times(config: PretrainConfig, on: Slice, compiled: Compiled) -> Figures:
    seconds = step_seconds(compiled, on, compiled.compute_seconds)
    ceiling = step_seconds(compiled, on, compiled.compute_ceiling_seconds)
    least = least_seconds(compiled, on)
    overlapped = waited = rate = per_host = cores = mfu = bound = num_days = chip_hours = None
    if seconds is not None and least is not None:
        overlapped, waited = network_seconds(compiled, on)
        rate = config.batch_size / seconds
        per_host = rate / compiled.num_hosts
        cores = per_host * _row_cpu_seconds(config)
        mfu, bound = (compiled.model_flops / time / on.chip.flops for time in (seconds, least))
        num_days = config.num_steps * seconds / 86_400
        chip_hours = num_days * 24 * on.num_chips
    return {
        "compute_seconds": compiled.compute_seconds,
        "compute_ceiling_seconds": compiled.compute_ceiling_seconds,
        "overlapped_collective_seconds": overlapped,
        "waited_collective_seconds": waited,
        "step_seconds": seconds,
        "step_ceiling_seconds": ceiling,
        "examples_per_second": rate,
        "mfu": mfu,
        "mfu_bound": bound,
        "loader_examples_per_second_per_host": per_host,
        "host_cores": cores,
        "chip_hours": chip_hours,
        "days": num_days,
    }


def _row_cpu_seconds(config: PretrainConfig) -> float:
    """Returns the loader's CPU time for a row, mean over the config's sources."""
    sources = mixture(config.data, config.batch_size)
    seconds = sum(source.rows * ROW_CPU_SECONDS[source.kind] for source in sources)
    return seconds / config.batch_size
