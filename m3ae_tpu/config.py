"""The settings of a run, as plain data. Imports nothing but the standard library."""

import dataclasses
import math
from typing import Literal, get_args

type Dtype = Literal["float32", "bfloat16", "float64"]
type Kind = Literal["paired", "image", "text"]


class ConfigError(ValueError):
    """A setting, file or folder of the user's that cannot work: names it, its value and the fix."""


def require(holds: bool, message: str) -> None:
    """Raises `ConfigError(message)` unless `holds`."""
    if not holds:
        raise ConfigError(message)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """A stack of equal pre-norm Transformer blocks."""

    num_layers: int = 12
    """Blocks in the stack."""
    width: int = 768
    """Channels of a token; a multiple of `num_heads` and of 4."""
    num_heads: int = 12
    """Attention heads; each gets `width / num_heads` channels."""
    mlp_ratio: int = 4
    """Hidden channels of a block's MLP, in units of `width`."""

    def __post_init__(self) -> None:
        for name in ("num_layers", "width", "num_heads", "mlp_ratio"):
            require(
                getattr(self, name) >= 1, f"{name} = {getattr(self, name)} is not positive. Set 1 or more."
            )
        near = max(1, round(self.width / self.num_heads)) * self.num_heads
        require(
            self.width % self.num_heads == 0,
            f"width = {self.width} is no multiple of num_heads = {self.num_heads}. "
            f"Set width = {near}, or another num_heads.",
        )
        require(
            self.width % 4 == 0,
            f"width = {self.width} is no multiple of 4, which 2-D position codes need. "
            f"Set width = {4 * max(1, self.width // 4)}.",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The M3AE network: one encoder for patches and text tokens, one small decoder."""

    patch_size: int = 16
    """Side of a square image patch, pixels."""
    vocab_size: int = 32_000
    """Pieces of the tokenizer; 0 builds a model without text parameters."""
    encoder: TransformerConfig = TransformerConfig()
    """What a run is for: its features are the product."""
    decoder: TransformerConfig = TransformerConfig(num_layers=8, width=512, num_heads=16)
    """Rebuilds what was hidden; thrown away after pre-training."""
    compute_dtype: Dtype = "bfloat16"
    """Dtype of activations. Norms, softmax and losses are float32 or wider in any case."""
    parameter_dtype: Dtype = "float32"
    """Dtype in which parameters and optimizer moments are kept."""
    remat: bool = False
    """Keep only each block's input for the backward pass and compute blocks again: a third more work, less memory."""
    unroll: int = 1
    """Blocks in one turn of the loop over layers: more to compile, fewer copies. Pays on CPUs and GPUs."""

    def __post_init__(self) -> None:
        require(self.patch_size >= 1, f"model.patch_size = {self.patch_size} is not positive. Set 16.")
        require(self.unroll >= 1, f"model.unroll = {self.unroll} is not positive. Set 1.")
        require(self.vocab_size >= 0, f"model.vocab_size = {self.vocab_size} is negative. Set 0 for no text.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """Which tokens are hidden from the encoder."""

    image_mask_ratio: float = 0.75
    """Share of the image patches that is hidden."""
    text_mask_ratio: float = 0.75
    """Share of the text tokens that is hidden."""
    draw: Literal["per_example", "per_batch"] = "per_example"
    """One random choice for each example, or one shared by the whole batch, as the paper's code does."""
    image_predicted_share: float = 1.0
    """Share of the hidden patches that the decoder rebuilds in a step, drawn anew each time; the rest costs nothing."""
    text_positions: Literal["valid", "all"] = "valid"
    """Hide a share of the real tokens of each text, or of all positions, padding included, as the paper's code does."""

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
        for name in ("image_weight", "text_weight", "unpaired_image_weight", "unpaired_text_weight"):
            weight = getattr(self, name)
            require(0 <= weight < float("inf"), f"loss.{name} = {weight} is not in [0, inf). Set 0 or more.")


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
            self.clip_norm >= 0, f"optimizer.clip_norm = {self.clip_norm} is negative. Set 0 for no clipping."
        )
        require(
            self.accumulation_steps >= 1,
            f"optimizer.accumulation_steps = {self.accumulation_steps} is not positive. Set 1.",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """A set of shards of one kind, and its share of each batch."""

    kind: Kind = "paired"
    """`paired` gives images with captions, `image` images alone, `text` texts alone."""
    shards: str = "starter/train-*"
    """Glob of ArrayRecord shards; `starter/...` names the set that ships with the package."""
    weight: float = 1.0
    """Share of a batch's rows, relative to the other sources' weights."""
    text_length: int = 64
    """Tokens of a text; longer ones are cut, shorter ones padded."""
    part: tuple[float, float] = (0.0, 1.0)
    """Which of the shards' records, from share to share in their order. The same shards as `paired` with (0, 0.25), as
    `image` and as `text` with (0.25, 1) leave a quarter of the pairs together."""

    def __post_init__(self) -> None:
        require(
            0 <= self.part[0] < self.part[1] <= 1,
            f"part = {self.part} of source {self.shards} is no range within [0, 1]. Set (0.0, 1.0) for all records.",
        )
        kinds = get_args(Kind.__value__)
        has_weight = 0 < self.weight < math.inf
        require(self.kind in kinds, f"kind = {self.kind} of source {self.shards} is none of {kinds}.")
        require(has_weight, f"weight = {self.weight} of source {self.shards} is no positive number. Set 1.")
        require(self.text_length >= 1, f"text_length = {self.text_length} is not positive. Set 64.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where examples come from and how they are prepared."""

    sources: tuple[SourceConfig, ...] = (SourceConfig(),)
    """Shard sets of which each batch holds a fixed number of rows."""
    tokenizer: str = "starter/tokenizer.model"
    """SentencePiece model; `starter/tokenizer.model` names the one that ships with the package."""
    image_size: int = 256
    """Side of the square crop that the model sees, pixels; a multiple of `model.patch_size`."""
    image_mean: tuple[float, float, float] = (0.5762, 0.5503, 0.5213)
    """Mean of the red, green and blue channel, on a scale of 0 to 1. Default: CC12M."""
    image_std: tuple[float, float, float] = (0.3207, 0.3169, 0.3307)
    """Standard deviation of the channels, on a scale of 0 to 1. Default: CC12M."""
    crop_area: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest share of the image that a random crop keeps."""
    flip_probability: float = 0.5
    """Chance that an image without text or direction words is mirrored; see `data/images.py`."""
    num_workers: int = 2
    """Processes that read and decode; 0 does it in the training process. Changes no bit."""
    max_broken_fraction: float = 0.01
    """Share of a source's records that may be broken before the run stops; 0 stops at the first one."""
    timeout_seconds: float = 120.0
    """A run that waits for a batch for so long stops: a worker hangs, or the disk."""

    def __post_init__(self) -> None:
        require(self.image_size >= 1, f"data.image_size = {self.image_size} is not positive. Set 256.")
        require(len(self.sources) >= 1, "data.sources is empty. Name at least one set of shards.")
        require(
            all(deviation > 0 for deviation in self.image_std),
            f"data.image_std = {self.image_std} is not positive throughout. Set (0.3207, 0.3169, 0.3307).",
        )
        require(
            0 < self.crop_area[0] <= self.crop_area[1] <= 1,
            f"data.crop_area = {self.crop_area} is no range within (0, 1]. Set (0.2, 1.0).",
        )
        require(
            0 <= self.flip_probability <= 1,
            f"data.flip_probability = {self.flip_probability} is not in [0, 1]. Set 0.5.",
        )
        require(
            0 <= self.max_broken_fraction <= 1,
            f"data.max_broken_fraction = {self.max_broken_fraction} is not in [0, 1]. Set 0.01.",
        )
        require(
            self.timeout_seconds > 0,
            f"data.timeout_seconds = {self.timeout_seconds} is not positive. Set 120.",
        )
        require(self.num_workers >= 0, f"data.num_workers = {self.num_workers} is negative. Set 0 or more.")


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
    """Weights & Biases project that gets the metrics too; empty for none. Needs the extra `wandb`."""

    def __post_init__(self) -> None:
        require(self.every_steps >= 1, f"logging.every_steps = {self.every_steps} is not positive. Set 50.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """A k-NN probe of frozen features while the run goes on."""

    every_steps: int = 0
    """Steps between two probes; 0 for none."""
    train_shards: str = "starter/train-*"
    """Labelled shards that the probe learns from."""
    test_shards: str = ""
    """Labelled shards that it is scored on; empty: a fifth of `train_shards`, whole duplicate groups at a time."""
    max_examples: int = 4_000
    """Examples read from each; bounds the probe's time."""

    def __post_init__(self) -> None:
        require(
            self.every_steps >= 0, f"probe.every_steps = {self.every_steps} is negative. Set 0 for no probe."
        )
        require(self.max_examples >= 50, f"probe.max_examples = {self.max_examples} is below 50. Set 4000.")


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
        require(self.num_steps >= 1, f"num_steps = {self.num_steps} is not positive. Set 1 or more.")
        require(self.batch_size >= 1, f"batch_size = {self.batch_size} is not positive. Set 1 or more.")
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
