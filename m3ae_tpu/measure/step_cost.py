"""The cost of a train step by component, as the TPU compiler schedules it without a TPU."""

import dataclasses

from m3ae_tpu import scopes
from m3ae_tpu.batch import mixture
from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.kernels.attention.shapes import AttentionShape
from m3ae_tpu.kernels.chips import CHIPS
from m3ae_tpu.measure import tpu_schedule
from m3ae_tpu.measure.hlo_text import operations
from m3ae_tpu.measure.kernel_cost import Case, scheduled
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


@dataclasses.dataclass(frozen=True)
class ComponentCost:
    """The cost of one component of a step."""

    us: float = 0.0
    """Sum over operations of the larger of work and memory traffic; background copies are free."""
    hbm_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class StepCost:
    """Cost of one train step."""

    components: dict[str, ComponentCost]
    """Cost by name, one of `COMPONENTS`; a fusion over several counts where it began."""
    peak_bytes: int
    """Highest use of memory, parameters and optimizer state included."""

    @property
    def us(self) -> float:
        return sum(component.us for component in self.components.values())

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
    config: PretrainConfig, chip: str, kernels: Kernels, kernel_us: dict[str, float]
) -> StepCost:
    """Returns the cost of a step on one chip of a kind, as the TPU compiler schedules it. Takes
    minutes.

    The work of a matrix product is what the compiler expected when it chose how to cut it; that of
    a kernel comes from its own replay. Whatever else a step does counts by its memory traffic.

    Args:
        config: `batch_size` rows on the one chip.
        chip: A TPU of `CHIPS`.
        kernels: "ours", or "xla" for the step without kernels.
        kernel_us: From `replayed_kernels`.
    """
    tpu_schedule.prepare(replay=False)
    mesh = described_mesh(CHIPS[chip].topology, 1)
    compiled = compile_for(mesh, config, kernels)
    us, hbm_bytes = (dict.fromkeys(COMPONENTS, 0.0) for _ in range(2))
    kernel_traffic: dict[str, float] = {}
    for operation in operations(compiled.as_text() or ""):
        component = component_of(operation.source)
        hbm_bytes[component] += operation.times * operation.hbm_bytes
        cost = tpu_schedule.Cost(chip, operation.estimated_cycles or 0, operation.hbm_bytes)
        if operation.source.endswith("pallas_call"):
            traffic = operation.times * cost.us
            kernel_traffic[component] = kernel_traffic.get(component, 0.0) + traffic
        elif not operation.kind.endswith("-start"):
            us[component] += operation.times * cost.us
    for component, traffic in kernel_traffic.items():
        us[component] += max(traffic, kernel_us.get(component, 0.0))
    analysis = compiled.memory_analysis()
    components = {
        component: ComponentCost(us[component], round(hbm_bytes[component]))
        for component in COMPONENTS
    }
    return StepCost(components, analysis.peak_memory_in_bytes if analysis is not None else 0)


def replayed_kernels(config: PretrainConfig, chip: str) -> dict[str, float]:
    """Returns the microseconds that our kernels take in a step, forward and backward, by component.

    Attention is replayed: `tpu_schedule.prepare(replay=True)` comes before. The text head counts by
    its matrix products at the chip's peak, those of the forward pass twice, as its kernels compute
    logits again.
    """
    us = dict.fromkeys(COMPONENTS, 0.0)
    peak = CHIPS[chip].core_flops
    us["text head, loss"] = flops_by_component(config)["text head, loss"] * 4 / 3 / peak * 1e6
    side = config.data.image_size // config.model.patch_size
    for source in mixture(config.data, config.batch_size):
        num_patches = 0 if source.kind == "text" else side**2
        tokens = num_tokens(num_patches, source.text_length, config.masking)
        stacks = {"encoder": config.model.encoder, "decoder": config.model.decoder}
        for (name, stack), count in zip(stacks.items(), tokens, strict=True):
            shape = AttentionShape(count, stack.num_heads, stack.width // stack.num_heads)
            case = Case(shape, backward=True, is_masked=source.kind != "image")
            row = scheduled("ours", case, chip)
            us[f"{name}: attention"] += row.us * source.rows * stack.num_layers
    return us


def flops_by_component(config: PretrainConfig) -> dict[str, int]:
    """Returns the FLOPs of matrix products of a step by component: forward and backward, nothing
    computed twice.
    """
    components = dict.fromkeys(COMPONENTS, 0)
    loss, shapes = pretraining(config).loss, config_batch_shapes(config)
    for scope, flops in flops_by_scope(loss, reference_model(config.model), shapes).items():
        components[component_of(scope)] += flops
    return components
