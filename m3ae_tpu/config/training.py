"""Settings that every training run has: its steps, batches, optimizer, data, and what it keeps."""

import dataclasses

from m3ae_tpu.config.data import DataConfig
from m3ae_tpu.errors import require


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay."""

    base_learning_rate: float = 1.5e-4
    """Peak learning rate for a batch of 256; scaled by `batch_size / 256`."""
    warmup_fraction: float = 0.05
    """Share of the run's steps over which the rate rises from 0 to its peak."""
    beta1: float = 0.9
    """Decay of the gradients' running mean."""
    beta2: float = 0.95
    """Decay of the squared gradients' running mean."""
    weight_decay: float = 0.05
    """Decoupled decay of the matrices; vectors, norms and embeddings are left alone."""
    clip_norm: float = 0.0
    """Largest global norm of the gradient; 0 does not clip."""
    accumulation_steps: int = 1
    """Parts in which a batch is computed one after the other: less memory, the same update."""

    def __post_init__(self) -> None:
        require(
            self.base_learning_rate > 0,
            f"optimizer.base_learning_rate = {self.base_learning_rate} is not positive. Set 1.5e-4.",
        )
        for name in ("beta1", "beta2"):
            beta = getattr(self, name)
            require(0 <= beta < 1, f"optimizer.{name} = {beta} is not in [0, 1). Set 0.9 or 0.95.")
        require(
            self.weight_decay >= 0,
            f"optimizer.weight_decay = {self.weight_decay} is negative. Set 0.05, or 0 for none.",
        )
        require(
            0 <= self.warmup_fraction < 1,
            f"optimizer.warmup_fraction = {self.warmup_fraction} is not in [0, 1). Set 0.05.",
        )
        require(
            self.clip_norm >= 0,
            f"optimizer.clip_norm = {self.clip_norm} is negative. Set 0 for no clipping.",
        )
        require(
            self.accumulation_steps >= 1,
            f"optimizer.accumulation_steps = {self.accumulation_steps} is not positive. Set 1.",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the run is saved. The last step always is."""

    every_steps: int = 1_000
    """Steps between two checkpoints."""
    keep: int = 3
    """Newest checkpoints that stay on disk."""

    def __post_init__(self) -> None:
        for name in ("every_steps", "keep"):
            require(
                getattr(self, name) >= 1,
                f"checkpoint.{name} = {getattr(self, name)} is not positive. Set 1 or more.",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """What a run tells while it runs."""

    every_steps: int = 50
    """Steps between two lines of metrics."""
    wandb_project: str = ""
    """Weights & Biases project that gets the metrics too; empty for none. Needs the extra `wandb`.
    """

    def __post_init__(self) -> None:
        require(
            self.every_steps >= 1,
            f"logging.every_steps = {self.every_steps} is not positive. Set 50.",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The part of a run's settings that the loop and the workdir read, whatever is trained."""

    seed: int = 0
    """Decides initial weights, the order of the data, crops, flips and masks."""
    num_steps: int = 100_000
    """Optimizer steps in all, counted from the run's first."""
    batch_size: int = 4_096
    """Examples of one step, over all devices and all kinds."""
    data: DataConfig = DataConfig()
    """Shards, and how an example is made of a record."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW and its learning rate."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When the run is saved."""
    logging: LoggingConfig = LoggingConfig()
    """When metrics are written, and where."""

    def __post_init__(self) -> None:
        require(
            self.num_steps >= 1, f"num_steps = {self.num_steps} is not positive. Set 1 or more."
        )
        require(
            self.batch_size >= 1, f"batch_size = {self.batch_size} is not positive. Set 1 or more."
        )
        require(0 <= self.seed < 2**32, f"seed = {self.seed} is not in [0, 2^32). Set 0.")
        steps = self.optimizer.accumulation_steps
        require(
            self.batch_size % steps == 0,
            f"batch_size = {self.batch_size} is not a multiple of "
            f"optimizer.accumulation_steps = {steps}. "
            f"Set --batch_size={-(-self.batch_size // steps) * steps}.",
        )
