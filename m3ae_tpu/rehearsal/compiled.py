"""Facts of a train step compiled for a described slice; runs in the compiler's process."""

import dataclasses
import math
import re
import resource
import time
from typing import Any

import jax

from m3ae_tpu.batch import mixture
from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.kernels.chips import Chip
from m3ae_tpu.measure.hlo_text import Operation, operations
from m3ae_tpu.measure.operation_time import PRODUCT_SHARE, floor_of_work
from m3ae_tpu.measure.rehearsal import config_batch_shapes, step_functions
from m3ae_tpu.measure.step_cost import COMPONENTS, component_of, flops_by_component
from m3ae_tpu.measure.tpu_schedule import not_kept
from m3ae_tpu.parallel.mesh import by_example, make_mesh, require_even_batches
from m3ae_tpu.parallel.rules import state_shardings
from m3ae_tpu.rehearsal.collectives import Collective, collectives
from m3ae_tpu.rehearsal.topologies import HARDWARE, Slice
from m3ae_tpu.train.card import size
from m3ae_tpu.train.flops import matmul_flops
from m3ae_tpu.train.pretraining import pretraining


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """Facts of one compiled step, for one chip, and the work that the step was given."""

    mesh: dict[str, int]
    """Sizes of the mesh axes."""
    num_hosts: int
    num_parameters: int
    """Parameters of the whole model."""
    parameter_bytes: int
    optimizer_bytes: int
    batch_bytes: int
    capacity_bytes: int
    peak_bytes: int
    """Highest use of memory; where the program was refused, what it would have needed."""
    fits: bool
    flops: float
    """FLOPs of matrix products, those that remat repeats included."""
    model_flops: float
    """FLOPs of matrix products, nothing counted twice."""
    compile_seconds: float
    compiler_memory_bytes: int
    """Highest use of memory of the compiler's process."""
    argument_bytes: int | None = None
    """Parameters, moments and batch with the padding of their tiles; None for a program that was
    refused.
    """
    hbm_bytes: float | None = None
    """Memory traffic; None for a program that was refused."""
    compute_seconds: float | None = None
    """Each operation's work or memory traffic, whichever takes longer, added up; a floor, as
    `measure.operation_time` counts work.
    """
    compute_ceiling_seconds: float | None = None
    """The same with the cycles that the compiler estimated."""
    collectives: tuple[Collective, ...] = ()


def compile_step_for(config: PretrainConfig, described: Slice) -> Compiled:
    """Compiles a config's train step for a slice, in the shardings of a run. Takes minutes.

    `tpu_schedule.prepare(replay=False)` comes before.

    Raises:
        UserError: the slice is unknown, or mesh and batch do not divide over it.
    """
    devices = described.devices()
    mesh = make_mesh(config.mesh, devices)
    require_even_batches(
        mixture(config.data, config.batch_size),
        mesh,
        batch_size=config.batch_size,
        accumulation_steps=config.optimizer.accumulation_steps,
    )
    init, step = step_functions(mesh, config, "ours")
    state, batch = jax.eval_shape(init), config_batch_shapes(config)
    shardings = state_shardings(state, mesh)
    facts: dict[str, Any] = {
        "mesh": dict(mesh.shape),
        "num_hosts": len({device.process_index for device in devices}),
        "num_parameters": size(state.model),
        "parameter_bytes": _bytes_per_chip(state.model, shardings.model),
        "optimizer_bytes": _bytes_per_chip(state.optimizer_state, shardings.optimizer_state),
        "batch_bytes": _bytes_per_chip(batch, jax.tree.map(lambda _: by_example(mesh), batch)),
        "capacity_bytes": HARDWARE[described.generation].capacity_bytes,
    }
    components = flops_by_component(config)
    facts["model_flops"] = sum(components.values()) / mesh.size
    facts["flops"] = _executed_flops(config) / mesh.size
    start = time.perf_counter()
    try:
        # The mesh as context: on one device, kernels learn of the chip by it alone.
        with not_kept(), jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            compiled = step.lower(state, batch).compile()
    except jax.errors.JaxRuntimeError as error:
        needed, capacity = refusal(error)
        facts |= {"fits": False, "peak_bytes": needed, "capacity_bytes": capacity}
        return Compiled(**facts, **_costs_of_compiling(start))
    facts |= _costs_of_compiling(start)
    analysis, text = compiled.memory_analysis(), compiled.as_text() or ""
    assert analysis is not None
    axes = dict(mesh.shape) | {"data": mesh.shape["data"] // described.num_slices}
    found = operations(text, unknown_iterations=1)
    matrix_unit = HARDWARE[described.generation].matrix_unit
    kernels = {
        component: flops / mesh.size
        for component, flops in _kernel_flops(config, components, matrix_unit).items()
    }
    facts["hbm_bytes"] = float(sum(line.times * line.hbm_bytes for line in found))
    floor, ceiling = _compute_seconds(found, kernels, described)
    facts |= {"compute_seconds": floor, "compute_ceiling_seconds": ceiling}
    return Compiled(
        **facts,
        fits=analysis.peak_memory_in_bytes <= facts["capacity_bytes"],
        peak_bytes=analysis.peak_memory_in_bytes,
        argument_bytes=analysis.argument_size_in_bytes,
        collectives=tuple(collectives(text, axes)),
    )


def _costs_of_compiling(start: float) -> dict[str, Any]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "compile_seconds": time.perf_counter() - start,
        "compiler_memory_bytes": usage.ru_maxrss * 1024,
    }


def _bytes_per_chip(tree: Any, shardings: Any) -> int:
    """Returns the bytes of a tree's arrays on one device."""
    sizes = jax.tree.map(
        lambda leaf, sharding: math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize,
        tree,
        shardings,
    )
    return sum(jax.tree.leaves(sizes))


def refusal(error: Exception) -> tuple[int, int]:
    """Returns the bytes of a chip's memory that a refused program needs, and those that there are.

    Raises any other error, such as that of a kernel which needs more VMEM than there is.
    """
    text = str(error)
    amounts = re.findall(r"\b([\d.]+)([KMGT])\b", text.partition("RESOURCE_EXHAUSTED")[2])
    if not re.search(r"memory space hbm|memory on HBM", text) or len(amounts) < 2:
        raise error
    unit = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    needed, capacity = (round(float(number) * unit[letter]) for number, letter in amounts[:2])
    return needed, capacity


def _executed_flops(config: PretrainConfig) -> int:
    """Returns the FLOPs of a step's matrix products, as the jaxpr writes them, remat included."""
    from m3ae_tpu.model.m3ae import M3AE

    model = jax.eval_shape(lambda: M3AE(config.model, key=jax.random.key(0)))
    batch = config_batch_shapes(config)
    rows = {
        kind: jax.ShapeDtypeStruct(jax.tree.leaves(arrays)[0].shape[:1], jax.numpy.int32)
        for kind, arrays in batch.items()
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    gradient = jax.grad(pretraining(config).loss, has_aux=True)
    return sum(matmul_flops(gradient, model, batch, rows, key).values())


def _kernel_flops(
    config: PretrainConfig, components: dict[str, int], matrix_unit: int
) -> dict[str, float]:
    """Returns the work of our kernels by component, in FLOPs of a matrix unit that is full.

    Attention computes its weights again in the backward pass, 7 products for 6; the text head its
    logits, 4 for 3. A head narrower than the matrix unit takes as long as one that fills it.
    """
    work = dict.fromkeys(COMPONENTS, 0.0)
    for name, stack in (("encoder", config.model.encoder), ("decoder", config.model.decoder)):
        narrow = max(1.0, matrix_unit * stack.num_heads / stack.width)
        again = 7 / 6 + (1 / 3 if config.model.remat else 0.0)
        component = f"{name}: attention"
        work[component] = components[component] * again * narrow
    work["text head, loss"] = components["text head, loss"] * 4 / 3
    return work


def _compute_seconds(
    found: list[Operation], kernel_flops: dict[str, float], described: Slice
) -> tuple[float, float]:
    """Returns floor and ceiling of the operations, one after the other."""
    chip: Chip = described.chip
    clock = HARDWARE[described.generation].clock_hz
    product_rate = PRODUCT_SHARE[described.generation] * chip.flops
    floor, ceiling, kernel_traffic = 0.0, 0.0, dict[str, float]()
    for line in found:
        traffic = line.hbm_bytes / chip.bytes_per_second
        if line.kind == "custom-call" and line.source.endswith("pallas_call"):
            component = component_of(line.source)
            kernel_traffic[component] = kernel_traffic.get(component, 0.0) + line.times * traffic
        elif not line.kind.endswith("-start"):
            floor += line.times * max(traffic, floor_of_work(line, clock, product_rate))
            ceiling += line.times * max(traffic, (line.estimated_cycles or 0) / clock)
    kernels = sum(
        max(traffic, kernel_flops[component] / chip.flops)
        for component, traffic in kernel_traffic.items()
    )
    return floor + kernels, ceiling + kernels
