"""Settings that every training run has: its steps, batches, optimizer, data, and what it keeps."""

import dataclasses
from typing import Literal

from m3ae_tpu.config.checks import (
    require_choice,
    require_field,
    require_positive,
    require_within,
)
from m3ae_tpu.config.data import DataConfig

type GradientSums = Literal["compute_dtype", "float32"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW or Muon, with linear warm-up and cosine decay."""

    name: Literal["adamw", "muon"] = "adamw"
    """`muon`: updates of the blocks' matrices are their momentum made orthogonal (Jordan et al.
    2024), twice as large as AdamW's, which the other parameters keep. One moment instead of two.
    """
    base_learning_rate: float = 1.5e-4
    """Peak learning rate for a batch of 256; scaled by `batch_size / 256`."""
    warmup_fraction: float = 0.05
    """Fraction of the run's steps over which the rate rises from 0 to its peak."""
    end_learning_rate: float = 0.0
    """Learning rate after the last step for a batch of 256; scaled as the peak."""
    beta1: float = 0.9
    """Decay of the gradients' running mean."""
    beta2: float = 0.95
    """Decay of the squared gradients' running mean."""
    weight_decay: float = 0.05
    """Decoupled decay of the matrices; vectors, norms and embeddings are left alone."""
    clip_norm: float = 0.0
    """Largest global norm of the gradient; 0 does not clip."""
    accumulation_steps: int = 1
    """Slices of a batch that are computed one after the other: less memory, the same update."""

    def __post_init__(self) -> None:
        require_positive(self, "base_learning_rate", "accumulation_steps")
        require_within(self, "[0, 1)", "warmup_fraction", "beta1", "beta2")
        require_within(self, "[0, inf)", "weight_decay", "clip_norm")
        require_field(
            self,
            "end_learning_rate",
            0 <= self.end_learning_rate <= self.base_learning_rate,
            f"is not in [0, base_learning_rate = {self.base_learning_rate}]",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """The devices as a mesh: what is split along its axes. It changes results by rounding only.

    One size may be -1: that axis takes the devices that the others leave.
    """

    data: int = -1
    """Devices over which examples are spread, with the parameters whole in each."""
    fsdp: int = 1
    """Devices over which examples and also all matrices and their moments are spread. A block's
    matrices are gathered when it is computed: less memory, more traffic.
    """
    tensor: int = 1
    """Devices over which each block's heads and hidden channels, and the vocabulary, are spread.
    It divides the heads of both stacks.
    """
    gradient_sums: GradientSums = "compute_dtype"
    """Dtype in which devices add up the gradients of what is computed in `model.compute_dtype`:
    that one, or float32, with twice the traffic of gradients. Norms and word vectors always have
    float32 sums.
    """

    def __post_init__(self) -> None:
        for name in ("data", "fsdp", "tensor"):
            size = getattr(self, name)
            require_field(self, name, size == -1 or size > 0, "is neither positive nor -1")
        if self.tensor == -1 or self.fsdp == -1:
            is_only = [self.data, self.fsdp, self.tensor].count(-1) == 1
            name = "tensor" if self.tensor == -1 else "fsdp"
            problem = "is -1 beside another -1, and one axis at most can take the devices left"
            require_field(self, name, is_only, problem, f"Set {name}, or data, to a number.")
        require_choice(self, "gradient_sums")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Steps that are saved. The last step always is."""

    every_steps: int = 1_000
    """Steps between two checkpoints."""
    keep: int = 3
    """Newest checkpoints that stay."""
    keep_every: int = 0
    """Checkpoints of steps that are multiples of this stay for ever; 0: none."""

    def __post_init__(self) -> None:
        require_positive(self, "every_steps", "keep")
        require_within(self, "[0, inf)", "keep_every")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """Intervals and destinations of metrics."""

    every_steps: int = 50
    """Steps between two lines of metrics."""
    wandb_project: str = ""
    """Weights & Biases project that gets the metrics too; empty for none. Needs the extra `wandb`.
    """

    def __post_init__(self) -> None:
        require_positive(self, "every_steps")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The part of a run's settings that the loop and the workdir read, whatever is trained."""

    seed: int = 0
    """Seed of the initial weights, the order of the data, crops, flips and masks."""
    num_steps: int = 100_000
    """Optimizer steps in all, counted from the run's first."""
    batch_size: int = 4_096
    """Examples per step, over all devices and all sources."""
    data: DataConfig = DataConfig()
    """Sources of examples, and their preparation."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW or Muon with linear warm-up and cosine decay."""
    mesh: MeshConfig = MeshConfig()
    """The devices as a mesh."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Steps that are saved."""
    logging: LoggingConfig = LoggingConfig()
    """Intervals and destinations of metrics."""

    def __post_init__(self) -> None:
        require_positive(self, "num_steps", "batch_size")
        require_field(self, "seed", 0 <= self.seed < 2**32, "is not in [0, 2^32)")
        slices = self.optimizer.accumulation_steps
        require_field(
            self,
            "batch_size",
            self.batch_size % slices == 0,
            f"is not a multiple of optimizer.accumulation_steps = {slices}",
            f"Set --batch_size={-(-self.batch_size // slices) * slices}.",
        )
