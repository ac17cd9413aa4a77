"""What the TPU compiler schedules for a config's train step, by part of the model, with no TPU at
hand.
"""

import dataclasses
import math

from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.data.mixture import rows_per_source
from m3ae_tpu.kernels.attention.shapes import AttentionShape
from m3ae_tpu.measure import tpu_schedule
from m3ae_tpu.measure.hlo_text import operations
from m3ae_tpu.measure.kernel_cost import Case, scheduled
from m3ae_tpu.measure.step_compile import Kernels, batch_shapes, compile_for, described_mesh
from m3ae_tpu.train.card import tokens_seen
from m3ae_tpu.train.flops import flops_by_scope

_SCOPES = {
    "optimizer": "optimizer",
    "text_loss": "text head, loss",
    "image_loss": "image head, loss",
    "embed": "patches, masks, embedding",
}
_PARTS = {"/attention/": "attention", "norm": "norms", "mlp": "MLP"}
PARTS = [
    *(
        f"{stack}: {part}"
        for stack in ("encoder", "decoder")
        for part in (*_PARTS.values(), "projections")
    ),
    *_SCOPES.values(),
    "rest",
]
"""Parts of a train step; `projections` are those around attention, with the residual sums."""


@dataclasses.dataclass(frozen=True)
class PartCost:
    """Of one part of a step."""

    us: float = 0.0
    """Of each operation the larger of work and memory traffic, added up; background copies are
    free.
    """
    hbm_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class StepCost:
    """Of one train step."""

    parts: dict[str, PartCost]
    """By part, one of `PARTS`. An operation that the compiler fused over parts counts where it
    began.
    """
    peak_bytes: int
    """Highest use of memory, parameters and optimizer state included."""

    @property
    def us(self) -> float:
        return sum(part.us for part in self.parts.values())

    @property
    def hbm_bytes(self) -> int:
        return sum(part.hbm_bytes for part in self.parts.values())


def part_of(scope: str) -> str:
    """Returns the part of a step that an operation belongs to, by the scope that JAX gave it."""
    for word, name in _SCOPES.items():
        if word in scope:
            return name
    for stack in ("encoder", "decoder"):
        if f"({stack})" in scope:
            inside = scope.partition(f"({stack})")[2] + "/"
            part = next((name for word, name in _PARTS.items() if word in inside), "projections")
            return f"{stack}: {part}"
    return "rest"


def scheduled_step(
    config: PretrainConfig, chip: str, kernels: Kernels, kernel_us: dict[str, float]
) -> StepCost:
    """Returns the cost of a step on one chip of a kind, as the TPU compiler schedules it. Takes
    minutes.

    The work of a matrix product is what the compiler expected when it chose how to cut it; that of
    a kernel comes from its own replay. Whatever else a step does counts by its memory traffic.

    Args:
        config: `batch_size` rows on the one chip.
        chip: One of `tpu_schedule.CHIPS`.
        kernels: "ours", or "xla" for the step without kernels.
        kernel_us: From `replayed_kernels`.
    """
    described = tpu_schedule.CHIPS[chip]
    compiled = compile_for(described_mesh(described.topology, 1), config, kernels)
    us, hbm_bytes, kernel_traffic = (dict.fromkeys(PARTS, 0.0) for _ in range(3))
    for operation in operations(compiled.as_text() or ""):
        part = part_of(operation.source)
        hbm_bytes[part] += operation.times * operation.hbm_bytes
        cost = tpu_schedule.Cost(chip, operation.estimated_cycles or 0, operation.hbm_bytes)
        if operation.source.endswith("pallas_call"):
            kernel_traffic[part] += operation.times * cost.us
        elif not operation.kind.endswith("-start"):
            us[part] += operation.times * cost.us
    for part, traffic in kernel_traffic.items():
        us[part] += max(traffic, kernel_us.get(part, 0.0)) if traffic else 0.0
    analysis = compiled.memory_analysis()
    parts = {part: PartCost(us[part], round(hbm_bytes[part])) for part in PARTS}
    return StepCost(parts, analysis.peak_memory_in_bytes if analysis is not None else 0)


def replayed_kernels(config: PretrainConfig, chip: str) -> dict[str, float]:
    """Returns the microseconds that our kernels take in a step, forward and backward, by part.

    Attention is replayed: `tpu_schedule.prepare(replay=True)` comes before. The text head counts by
    its matrix products at the chip's peak, those of the forward pass twice, as its kernels compute
    logits again.
    """
    us = dict.fromkeys(PARTS, 0.0)
    peak = tpu_schedule.CHIPS[chip].peak_flops or math.nan
    us["text head, loss"] = flops_by_part(config)["text head, loss"] * 4 / 3 / peak * 1e6
    for source, rows in zip(config.data.sources, rows_per_source(config), strict=True):
        tokens = tokens_seen(config, source.kind, source.text_length)
        stacks = {"encoder": config.model.encoder, "decoder": config.model.decoder}
        for (name, stack), count in zip(stacks.items(), tokens, strict=True):
            shape = AttentionShape(count, stack.num_heads, stack.width // stack.num_heads)
            case = Case(shape, backward=True, masked=source.kind != "image")
            row = scheduled("ours", case, chip)
            us[f"{name}: attention"] += row.us * rows * stack.num_layers
    return us


def flops_by_part(config: PretrainConfig) -> dict[str, int]:
    """Returns the FLOPs of matrix products of a step by part: forward and backward, nothing
    computed twice.
    """
    parts = dict.fromkeys(PARTS, 0)
    for scope, flops in flops_by_scope(config, batch_shapes(config)).items():
        parts[part_of(scope)] += flops
    return parts
