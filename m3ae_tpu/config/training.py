"""Settings of a pre-training run: what is hidden, what is minimised and how, and what is kept."""

import dataclasses
from typing import Literal

from m3ae_tpu.config.data import DataConfig
from m3ae_tpu.config.evaluation import ProbeConfig
from m3ae_tpu.config.model import ModelConfig
from m3ae_tpu.errors import require


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """Which tokens are hidden from the encoder."""

    image_mask_ratio: float = 0.75
    """Share of the image patches that is hidden."""
    text_mask_ratio: float = 0.75
    """Share of the text tokens that is hidden."""
    draw: Literal["per_example", "per_batch"] = "per_example"
    """One random choice for each example, or one shared by the whole batch, as the paper's code
    does.
    """
    image_predicted_share: float = 1.0
    """Share of the hidden patches that the decoder rebuilds in a step, drawn anew each time; the
    rest costs nothing.
    """
    text_positions: Literal["valid", "all"] = "valid"
    """Hide a share of the real tokens of each text, or of all positions, padding included, as the
    paper's code does.
    """

    def __post_init__(self) -> None:
        for name in ("image_mask_ratio", "text_mask_ratio"):
            ratio = getattr(self, name)
            near = f"Did you mean {ratio / 100}?" if 5 <= ratio <= 100 else "Set 0.75."
            require(0 <= ratio <= 1, f"masking.{name} = {ratio} is not in [0, 1]. {near}")
        require(
            0 < self.image_predicted_share <= 1,
            f"masking.image_predicted_share = {self.image_predicted_share} is not in (0, 1]. "
            "Set 1 to rebuild all hidden patches.",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """How the reconstruction terms are formed and added up."""

    image_weight: float = 1.0
    """Weight of the hidden patches' mean squared error."""
    text_weight: float = 0.5
    """Weight of the hidden words' cross-entropy in pairs."""
    unpaired_image_weight: float = 1.0
    """Weight of the mean squared error of images without text."""
    unpaired_text_weight: float = 0.5
    """Weight of the cross-entropy of texts without an image."""
    norm_pix_loss: bool = False
    """Compare with patches normalised one by one (He et al. 2022), not with normalised pixels."""

    def __post_init__(self) -> None:
        for name in (
            "image_weight",
            "text_weight",
            "unpaired_image_weight",
            "unpaired_text_weight",
        ):
            weight = getattr(self, name)
            require(
                0 <= weight < float("inf"),
                f"loss.{name} = {weight} is not in [0, inf). Set 0 or more.",
            )


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
class PretrainConfig:
    """Everything that decides a pre-training run's bits, and how it is watched."""

    seed: int = 0
    """Decides initial weights, the order of the data, crops, flips and masks."""
    num_steps: int = 100_000
    """Optimizer steps in all, from the very first on."""
    batch_size: int = 4_096
    """Examples of one step, over all devices and all kinds."""
    model: ModelConfig = ModelConfig()
    """The network."""
    masking: MaskingConfig = MaskingConfig()
    """What is hidden."""
    loss: LossConfig = LossConfig()
    """What is minimised."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How it is minimised."""
    data: DataConfig = DataConfig()
    """What is learned from."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """What is kept."""
    logging: LoggingConfig = LoggingConfig()
    """What is told."""
    probe: ProbeConfig = ProbeConfig()
    """What is scored on the way."""

    def __post_init__(self) -> None:
        require(
            self.num_steps >= 1, f"num_steps = {self.num_steps} is not positive. Set 1 or more."
        )
        require(
            self.batch_size >= 1, f"batch_size = {self.batch_size} is not positive. Set 1 or more."
        )
        require(0 <= self.seed < 2**32, f"seed = {self.seed} is not in [0, 2^32). Set 0.")
        size, patch = self.data.image_size, self.model.patch_size
        require(
            size % patch == 0,
            f"data.image_size = {size} is no multiple of model.patch_size = {patch}. "
            f"Set --data.image_size={max(1, round(size / patch)) * patch}.",
        )
        parts = self.optimizer.accumulation_steps
        require(
            self.batch_size % parts == 0,
            f"batch_size = {self.batch_size} does not divide into optimizer.accumulation_steps = {parts} parts. "
            f"Set --batch_size={-(-self.batch_size // parts) * parts}.",
        )
        for source in self.data.sources:
            require(
                source.kind == "image" or self.model.vocab_size > 0,
                f"model.vocab_size = 0 has no text parameters, but source {source.shards} is of kind "
                f"{source.kind!r}. Set model.vocab_size, or kind='image'.",
            )
