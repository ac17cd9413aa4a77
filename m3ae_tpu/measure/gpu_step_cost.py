"""The cost of a train step by component on a GPU that is not here: a model of the compiled program.

A kernel takes as long as its products at a share of the chip's peak, or its memory traffic at a
share of the chip's bandwidth, whichever is longer. Attention by cuDNN comes from a table. Nothing
else is known of the chip, and no start of a kernel is counted.
"""

import dataclasses
import functools
import math

import jax

from m3ae_tpu.batch import mixture
from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.kernels.attention.shapes import AttentionShape
from m3ae_tpu.kernels.chips import CHIPS
from m3ae_tpu.measure import gpu_compiler
from m3ae_tpu.measure.gpu_kernels import (
    ATTENTION,
    ATTENTION_BACKWARD,
    COLLECTIVE,
    PRODUCT,
    Kernel,
    kernels,
)
from m3ae_tpu.measure.rehearsal import Kernels, config_batch_shapes, step_functions
from m3ae_tpu.measure.step_cost import COMPONENTS, component_of
from m3ae_tpu.measure.tpu_schedule import not_kept
from m3ae_tpu.train.card import num_tokens

PRODUCT_SHARE = 0.76
"""Share of the peak FLOP/s in products. From the trace of a step of `m3ae_base` on an H100: see
`docs/results/gpu.md`. Other chips were not traced, and count by the same shares of their peaks.
"""

MEMORY_SHARE = 2.25 / 3.35
"""Share of the peak bandwidth in all other kernels, from the same trace: 2 to 2.3 TB/s of 3.35."""

CUDNN_US = {
    (AttentionShape(65, 12, 64), False): 1.30,
    (AttentionShape(257, 16, 32), False): 6.35,
    (AttentionShape(81, 12, 64), False): 1.53,
    (AttentionShape(81, 12, 64), True): 1.85,
    (AttentionShape(321, 16, 32), False): 7.56,
    (AttentionShape(321, 16, 32), True): 11.2,
}
"""Microseconds of a row on an H100, forward and backward, by shape and whether keys are masked.

The first two are those of the trace (4 and 13 ms of a step of 256 images). The others are the
benchmark of attention in `docs/results/gpu.md`, without the copies around cuDNN, which the step's
program holds itself: three arrays read and written before, and three after, at the bandwidth above.
"""

SLOWER_THAN_H100 = {"h100": 1.0, "h200": 1.0, "a100": 132 * 1.755 / (108 * 1.41)}
"""Factor of `CUDNN_US`: the ratio of cores times clock, as exponentials bound it."""


@dataclasses.dataclass(frozen=True)
class ComponentCost:
    """The cost of one component of a step."""

    product_ms: float = 0.0
    cudnn_ms: float = 0.0
    other_ms: float = 0.0
    read_bytes: int = 0
    written_bytes: int = 0
    num_kernels: int = 0

    @property
    def ms(self) -> float:
        return self.product_ms + self.cudnn_ms + self.other_ms

    def plus(self, other: "ComponentCost") -> "ComponentCost":
        sums = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return ComponentCost(*(mine + others for mine, others in sums))


@dataclasses.dataclass(frozen=True)
class GpuStepCost:
    """The cost of one train step on one GPU."""

    components: dict[str, ComponentCost]
    """By name, one of `COMPONENTS`; a kernel over several counts where it began."""
    temporary_bytes: int
    peak_bytes: int
    """Parameters, optimizer state and batch included."""
    collectives: int

    @property
    def whole(self) -> ComponentCost:
        return functools.reduce(ComponentCost.plus, self.components.values())

    @property
    def without_attention_ms(self) -> float:
        """Milliseconds of everything but cuDNN's kernels."""
        return self.whole.ms - self.whole.cudnn_ms


def modelled_step(config: PretrainConfig, chip: str, kernels: Kernels) -> GpuStepCost:
    """Returns the cost of a step on one GPU, compiled without one. Takes minutes.

    Args:
        config: `batch_size` rows on the one GPU.
        chip: One of `kernels.chips.GPUS`.
        kernels: Which step.
    """
    return cost_of_compiled(config, chip, compile_step(config, chip, kernels))


def cost_of_compiled(
    config: PretrainConfig, chip: str, compiled: jax.stages.Compiled
) -> GpuStepCost:
    """Returns the cost of a step on one GPU, which is compiled already."""
    memory = compiled.memory_analysis()
    assert memory is not None
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    temporary = memory.temp_size_in_bytes
    return read_step(config, chip, compiled.as_text() or "", temporary, temporary + held)


def compile_step(config: PretrainConfig, chip: str, kernels: Kernels) -> jax.stages.Compiled:
    """Compiles a config's train step for one GPU that is not here."""
    init, step = step_functions(gpu_compiler.described_gpu_mesh(chip), config, kernels)
    with not_kept():
        lowered = step.lower(jax.eval_shape(init), config_batch_shapes(config))
        return lowered.compile(compiler_options=gpu_compiler.OPTIONS)


def read_step(
    config: PretrainConfig, chip: str, text: str, temporary_bytes: int, peak_bytes: int
) -> GpuStepCost:
    """Adds up the kernels of a compiled step, given as its text, by component."""
    components = dict.fromkeys(COMPONENTS, ComponentCost())
    found = kernels(text)
    for kernel in found:
        name = component_of(kernel.scope)
        components[name] = components[name].plus(_cost(chip, kernel))
    for name, ms in cudnn_ms(config, chip).items():
        if components[name].num_kernels and _has_cudnn(found, name):
            components[name] = dataclasses.replace(components[name], cudnn_ms=ms)
    collectives = sum(kernel.times for kernel in found if kernel.kind == COLLECTIVE)
    return GpuStepCost(components, temporary_bytes, peak_bytes, collectives)


def seconds(chip: str, kernel: Kernel) -> float:
    """Returns the time of one run by the two shares."""
    peak = CHIPS[chip]
    return max(
        kernel.flops / (PRODUCT_SHARE * peak.flops),
        kernel.bytes / (MEMORY_SHARE * peak.bytes_per_second),
    )


def _cost(chip: str, kernel: Kernel) -> ComponentCost:
    ms = kernel.times * seconds(chip, kernel) * 1e3
    is_cudnn = kernel.kind in (ATTENTION, ATTENTION_BACKWARD)
    is_product = kernel.kind == PRODUCT
    return ComponentCost(
        product_ms=ms if is_product else 0.0,
        other_ms=0.0 if is_product or is_cudnn else ms,
        read_bytes=kernel.times * kernel.read_bytes,
        written_bytes=kernel.times * kernel.written_bytes,
        num_kernels=kernel.times,
    )


def _has_cudnn(found: list[Kernel], component: str) -> bool:
    kinds = {kernel.kind for kernel in found if component_of(kernel.scope) == component}
    return bool(kinds & {ATTENTION, ATTENTION_BACKWARD})


def cudnn_ms(config: PretrainConfig, chip: str) -> dict[str, float]:
    """Returns the milliseconds of cuDNN's attention in a step, forward and backward, by component.

    A shape that `CUDNN_US` lacks takes the time of the entry whose heads and tokens are nearest,
    times the ratio of heads, and of tokens to the power of 1.5.
    """
    total: dict[str, float] = {}
    side = config.data.image_size // config.model.patch_size
    for source in mixture(config.data, config.batch_size):
        num_patches = 0 if source.kind == "text" else side**2
        tokens = num_tokens(num_patches, source.text_length, config.masking)
        stacks = {"encoder": config.model.encoder, "decoder": config.model.decoder}
        for (name, stack), count in zip(stacks.items(), tokens, strict=True):
            shape = AttentionShape(count, stack.num_heads, stack.width // stack.num_heads)
            us = _cudnn_us(shape, is_masked=source.kind != "image") * SLOWER_THAN_H100[chip]
            component = f"{name}: attention"
            runs = source.rows * stack.num_layers
            total[component] = total.get(component, 0.0) + us * runs / 1e3
    return total


def _cudnn_us(shape: AttentionShape, *, is_masked: bool) -> float:
    def distance(known: AttentionShape) -> tuple[float, float]:
        return (
            abs(math.log(known.head_dim / shape.head_dim)),
            abs(math.log(known.tokens / shape.tokens)),
        )

    near = min((known for known, masked in CUDNN_US if masked == is_masked), key=distance)
    ratio = shape.num_heads / near.num_heads * (shape.tokens / near.tokens) ** 1.5
    return CUDNN_US[near, is_masked] * ratio
