"""What the TPU compiler schedules for a config's train step, by part of the model, with no TPU at hand."""

import dataclasses

from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.kernels import scheduled_cost
from m3ae_tpu.train.flops import flops_by_scope
from m3ae_tpu.train.step_compile import Kernels, batch_shapes, compile_for, described_mesh

_SCOPES = {
    "optimizer": "optimizer",
    "text_loss": "text head, loss",
    "image_loss": "image head, loss",
    "embed": "patches, masks, embedding",
}
_PARTS = {"/attention/": "attention", "norm": "norms", "mlp": "MLP"}
PARTS = [
    *(f"{stack}: {part}" for stack in ("encoder", "decoder") for part in (*_PARTS.values(), "projections")),
    *_SCOPES.values(),
    "rest",
]
"""Parts of a train step; `projections` are those around attention, with the residual sums."""


@dataclasses.dataclass(frozen=True)
class PartCost:
    """Of one part of a step."""

    us: float = 0.0
    """The larger of scheduled time and memory traffic of each operation, added up; background copies are free."""
    hbm_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class StepCost:
    """Of one train step."""

    parts: dict[str, PartCost]
    """By part, one of `PARTS`. An operation that the compiler fused over parts counts where it began."""
    peak_bytes: int
    """Highest use of memory, parameters and optimizer state included."""
    uncounted: int
    """Operations for which the replay gives no cycles: only their memory traffic is in `us`."""

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


def scheduled_step(config: PretrainConfig, chip: str, kernels: Kernels) -> StepCost:
    """Returns the cost of a step on one chip of a kind, as the TPU compiler schedules it.

    `scheduled_cost.prepare(replay=True)` comes before. Takes minutes.

    Args:
        config: `batch_size` rows on the one chip.
        chip: One of `scheduled_cost.CHIPS`.
        kernels: "ours", or "xla" for the step without kernels.
    """
    described = scheduled_cost.CHIPS[chip]
    compiled = compile_for(described_mesh(described.topology, 1), config, kernels)
    parts = dict.fromkeys(PARTS, PartCost())
    uncounted = 0
    for operation in scheduled_cost.operations(compiled.as_text() or ""):
        cost = scheduled_cost.Cost(chip, operation.cycles or 0, operation.hbm_bytes)
        uncounted += operation.cycles is None
        name = part_of(operation.source)
        is_background = operation.kind.endswith("-start")
        parts[name] = PartCost(
            parts[name].us + (0.0 if is_background else operation.times * cost.us),
            parts[name].hbm_bytes + operation.times * operation.hbm_bytes,
        )
    analysis = compiled.memory_analysis()
    return StepCost(parts, analysis.peak_memory_in_bytes if analysis is not None else 0, uncounted)


def flops_by_part(config: PretrainConfig) -> dict[str, int]:
    """Returns the FLOPs of matrix products of a step by part: forward and backward, nothing computed twice."""
    parts = dict.fromkeys(PARTS, 0)
    for scope, flops in flops_by_scope(config, batch_shapes(config)).items():
        parts[part_of(scope)] += flops
    return parts
