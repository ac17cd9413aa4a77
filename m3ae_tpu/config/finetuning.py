"""Settings of fine-tuning: an encoder learns classes of images."""

import dataclasses
from typing import Literal

from m3ae_tpu.config.checks import (
    FieldError,
    require_choice,
    require_even_heads,
    require_field,
    require_whole_patches,
    require_within,
)
from m3ae_tpu.config.data import DataConfig, SourceConfig
from m3ae_tpu.config.evaluation import EvaluationConfig
from m3ae_tpu.config.model import ModelConfig, TransformerConfig
from m3ae_tpu.config.training import OptimizerConfig, RunConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """The layer that scores classes, and what it sees of the encoder."""

    pooling: Literal["cls", "image_mean", "image_avgmax", "cls_image_mean_max"] = "image_mean"
    """`cls`: the class token after the final norm. `image_mean`: the mean of the patches before
    it, with a norm of its own. `image_avgmax`: the same of half the sum of mean and maximum. timm
    has them as `token`, `avg` and `avgmax`. `cls_image_mean_max`: class token, mean and maximum,
    each with that norm, side by side.
    """

    def __post_init__(self) -> None:
        require_choice(self, "pooling")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """Changes of training images beside crops and flips."""

    rand_augment_operations: int = 2
    """Operations of RandAugment drawn for each image, each done with probability 0.5; 0: none."""
    rand_augment_magnitude: float = 9.0
    """Mean strength of an operation, from 0 to 10."""
    rand_augment_deviation: float = 0.5
    """Standard deviation of the strength."""
    erasing_probability: float = 0.25
    """Probability that a box of an image is filled with noise (Zhong et al. 2017)."""
    mixup_alpha: float = 0.8
    """Images of a batch are blended in pairs by a share from Beta(alpha, alpha); 0: never."""
    cutmix_alpha: float = 1.0
    """The same with a box of the other image, in its place. With mixup each has half the batches.
    """

    def __post_init__(self) -> None:
        require_within(self, "[0, 14]", "rand_augment_operations")
        require_within(self, "[0, 10]", "rand_augment_magnitude")
        require_within(self, "[0, inf)", "rand_augment_deviation", "mixup_alpha", "cutmix_alpha")
        require_within(self, "[0, 1]", "erasing_probability")

    @property
    def is_mixed(self) -> bool:
        """True where images of a batch are combined with each other."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneOptimizerConfig(OptimizerConfig):
    """AdamW or Muon with a rate for each layer, and a running average of the weights."""

    base_learning_rate: float = 5e-4
    """Peak learning rate of the head for a batch of 256; scaled by `batch_size / 256`."""
    beta2: float = 0.999
    """Decay of the squared gradients' running mean."""
    layer_decay: float = 0.65
    """Factor of rate and weight decay from each block to the one below it; 1: the same for all."""
    average_decay: float = 0.0
    """Decay of a running average of the weights, which is evaluated beside them; 0: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_within(self, "(0, 1]", "layer_decay")
        require_within(self, "[0, 1)", "average_decay")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunConfig):
    """Everything that decides a fine-tuning run's bits, and how it is watched.

    With `--model` the sizes of `model`, and size, mean and deviation of the images, are those of
    the pre-trained model; here they are those of a network from scratch.
    """

    model: ModelConfig = ModelConfig(vocab_size=0, decoder=TransformerConfig(num_layers=0))
    """The network under the head: an encoder of images."""
    head: HeadConfig = HeadConfig()
    """The layer that scores classes."""
    classes: tuple[str, ...] = ()
    """Names of the classes in their order; empty: those of the training records, sorted."""
    drop_path: float = 0.1
    """Probability that an example passes the last block by; it grows in a line from 0 in the first.
    Attention and MLP are passed by apart from each other.
    """
    image_mask_ratio: float = 0.0
    """Share of the patches that training does not see, drawn at each step for each image; whole
    images are scored. It regularises, and 0.5 halves the cost of a step (Liu et al. 2022).
    """
    label_smoothing: float = 0.1
    """Share of the target that all classes have alike."""
    augmentation: AugmentationConfig = AugmentationConfig()
    """Changes of training images beside crops and flips."""
    data: DataConfig = DataConfig(sources=(SourceConfig(kind="image"),))
    """Sources of labelled images, and their preparation."""
    optimizer: FinetuneOptimizerConfig = FinetuneOptimizerConfig()
    """AdamW or Muon with a rate for each layer, and a running average of the weights."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Labelled examples that the classifier is scored on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole_patches(self.data.image_size, self.model.patch_size)
        heads = {"model.encoder.num_heads": self.model.encoder.num_heads}
        require_even_heads(self.mesh.tensor, heads)
        require_within(self, "[0, 1)", "image_mask_ratio", "drop_path", "label_smoothing")
        num_patches = (self.data.image_size // self.model.patch_size) ** 2
        is_seen = num_patches * (1 - self.image_mask_ratio) >= 1
        problem = f"hides all of an image's {num_patches} patches"
        require_field(self, "image_mask_ratio", is_seen, problem, "Set a smaller one.")
        problem = "is a single class, and a classifier tells classes apart"
        require_field(self, "classes", len(self.classes) != 1, problem, "Name two or more.")
        is_distinct = len(set(self.classes)) == len(self.classes)
        require_field(self, "classes", is_distinct, "names a class twice", "Name each once.")
        decoder, vocab = self.model.decoder.num_layers, self.model.vocab_size
        if decoder or vocab:
            name, value = ("vocab_size", vocab) if vocab else ("decoder.num_layers", decoder)
            raise FieldError(
                f"model.{name} = {value} belongs to pre-training, and fine-tuning takes the "
                f"encoder of images alone. Set --model.{name}=0."
            )
        for number, source in enumerate(self.data.sources):
            if source.kind != "image":
                raise FieldError(
                    f"data.sources.{number}.kind = {source.kind} is not image, and fine-tuning "
                    f"learns from images alone. Set --data.sources.{number}.kind=image."
                )
        step = 2 * self.optimizer.accumulation_steps
        if self.augmentation.is_mixed and self.batch_size % step:
            raise FieldError(
                f"batch_size = {self.batch_size} is not a multiple of {step}, and mixup and cutmix "
                f"pair the images. Set --batch_size={-(-self.batch_size // step) * step}, or both "
                "of augmentation.mixup_alpha and augmentation.cutmix_alpha to 0."
            )
