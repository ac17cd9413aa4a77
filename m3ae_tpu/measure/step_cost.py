"""The cost of a train step by component, as the TPU compiler schedules it without a TPU."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from m3ae_tpu import scopes
from m3ae_tpu.batch import mixture
from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.kernels.attention.shapes import AttentionShape
from m3ae_tpu.kernels.chips import CHIPS
from m3ae_tpu.measure import tpu_schedule
from m3ae_tpu.measure.hlo_text import operations
from m3ae_tpu.measure.kernel_cost import Case, scheduled
from m3ae_tpu.measure.operation_time import ceiling_us, floor_us
from m3ae_tpu.measure.rehearsal import Kernels, compile_for, config_batch_shapes
from m3ae_tpu.parallel.mesh import described_mesh
from m3ae_tpu.train.card import num_tokens, reference_model
from m3ae_tpu.train.flops import flops_by_scope
from m3ae_tpu.train.pretraining import pretraining

_SCOPES = {
    scopes.OPTIMIZER: "optimizer",
    scopes.TEXT_LOSS: "text head, loss",
    scopes.IMAGE_LOSS: "image head, loss",
    scopes.EMBED: "patches, masks, embedding",
}
_STACKS = (scopes.ENCODER, scopes.DECODER)
_IN_STACK = {f"/{scopes.ATTENTION}/": "attention", scopes.NORM: "norms", scopes.MLP: "MLP"}
COMPONENTS = [
    *(
        f"{stack}: {component}"
        for stack in _STACKS
        for component in (*_IN_STACK.values(), "projections")
    ),
    *_SCOPES.values(),
    "rest",
]
"""Components of a train step; `projections` are those around attention, with the residual sums."""


class KernelTime(NamedTuple):
    """Time of our kernels in one component of a step, forward and backward."""

    component: str
    name: str
    """Operation, shape and rows, as they were replayed."""
    us: float


@dataclasses.dataclass(frozen=True)
class ComponentCost:
    """The cost of one component of a step."""

    floor_us: float = 0.0
    """Sum over operations of `operation_time.floor_us`; background copies are free."""
    ceiling_us: float = 0.0
    """The same of `operation_time.ceiling_us`."""
    hbm_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class StepCost:
    """Cost of one train step."""

    components: dict[str, ComponentCost]
    """Cost by name, one of `COMPONENTS`; a fusion over several counts where it began."""
    peak_bytes: int
    """Highest use of memory, parameters and optimizer state included."""
    num_operations: int
    """Operations that a step runs one after the other; none has its start counted."""

    @property
    def floor_us(self) -> float:
        return sum(component.floor_us for component in self.components.values())

    @property
    def ceiling_us(self) -> float:
        return sum(component.ceiling_us for component in self.components.values())

    @property
    def hbm_bytes(self) -> int:
        return sum(component.hbm_bytes for component in self.components.values())


def component_of(scope: str) -> str:
    """Returns the component of a step that an operation belongs to, by its scope in JAX."""
    for word, name in _SCOPES.items():
        if word in scope:
            return name
    for stack in _STACKS:
        if f"({stack})" in scope:
            inside = scope.partition(f"({stack})")[2] + "/"
            component = next(
                (name for word, name in _IN_STACK.items() if word in inside), "projections"
            )
            return f"{stack}: {component}"
    return "rest"


def scheduled_step(
    config: PretrainConfig, chip: str, kernels: Kernels, kernel_times: Sequence[KernelTime]
) -> StepCost:
    """Returns the cost of a step on one chip of a kind, as the TPU compiler schedules it. Takes
    minutes.

    Args:
        config: `batch_size` rows on the one chip.
        chip: A TPU of `CHIPS`.
        kernels: "ours", or "xla" for the step without kernels.
        kernel_times: From `replayed_kernels`.
    """
    tpu_schedule.prepare(replay=False)
    mesh = described_mesh(CHIPS[chip].topology, 1)
    compiled = compile_for(mesh, config, kernels)
    analysis = compiled.memory_analysis()
    peak_bytes = analysis.peak_memory_in_bytes if analysis is not None else 0
    return read_step(chip, compiled.as_text() or "", kernel_times, peak_bytes)


def read_step(
    chip: str, text: str, kernel_times: Sequence[KernelTime], peak_bytes: int
) -> StepCost:
    """Adds up the operations of a compiled step, given as its text, by component."""
    floor, ceiling, hbm_bytes = (dict.fromkeys(COMPONENTS, 0.0) for _ in range(3))
    kernel_traffic: dict[str, float] = {}
    num_operations = 0
    for operation in operations(text):
        component, times = component_of(operation.source), operation.times
        hbm_bytes[component] += times * operation.hbm_bytes
        if operation.kind.endswith("-start"):
            continue
        num_operations += times
        if operation.source.endswith("pallas_call"):
            traffic = times * operation.hbm_bytes / CHIPS[chip].core_bytes_per_second * 1e6
            kernel_traffic[component] = kernel_traffic.get(component, 0.0) + traffic
        else:
            floor[component] += times * floor_us(chip, operation)
            ceiling[component] += times * ceiling_us(chip, operation)
    for component, traffic in kernel_traffic.items():
        own = sum(kernel.us for kernel in kernel_times if kernel.component == component)
        floor[component] += max(traffic, own)
        ceiling[component] += max(traffic, own)
    components = {
        component: ComponentCost(floor[component], ceiling[component], round(hbm_bytes[component]))
        for component in COMPONENTS
    }
    return StepCost(components, peak_bytes, num_operations)


def replayed_kernels(config: PretrainConfig, chip: str) -> list[KernelTime]:
    """Returns the time that our kernels take in a step.

    Attention is replayed: `tpu_schedule.prepare(replay=True)` comes before. The text head counts by
    its matrix products at the chip's peak, those of the forward pass twice, as its kernels compute
    logits again.
    """
    head = "text head, loss"
    us = flops_by_component(config)[head] * 4 / 3 / CHIPS[chip].core_flops * 1e6
    times = [KernelTime(head, "products of the text head at the peak, not replayed", us)]
    side = config.data.image_size // config.model.patch_size
    for source in mixture(config.data, config.batch_size):
        num_patches = 0 if source.kind == "text" else side**2
        tokens = num_tokens(num_patches, source.text_length, config.masking)
        stacks = {"encoder": config.model.encoder, "decoder": config.model.decoder}
        for (name, stack), count in zip(stacks.items(), tokens, strict=True):
            shape = AttentionShape(count, stack.num_heads, stack.width // stack.num_heads)
            case = Case(shape, backward=True, is_masked=source.kind != "image")
            row = scheduled("ours", case, chip)
            runs = source.rows * stack.num_layers
            label = (
                f"attention_forward and attention_backward, {count} tokens, {shape.num_heads} "
                f"heads of {shape.head_dim}: {row.us:.2f} us a row, {row.cycles:,.0f} cycles, "
                f"{runs:,} rows and blocks"
            )
            times.append(KernelTime(f"{name}: attention", label, row.us * runs))
    return times


def flops_by_component(config: PretrainConfig) -> dict[str, int]:
    """Returns the FLOPs of matrix products of a step by component: forward and backward, nothing
    computed twice.
    """
    components = dict.fromkeys(COMPONENTS, 0)
    loss, shapes = pretraining(config).loss, config_batch_shapes(config)
    for scope, flops in flops_by_scope(loss, reference_model(config.model), shapes).items():
        components[component_of(scope)] += flops
    return components
