"""Settings of masked pre-training: the network, what is hidden, and the loss."""

import dataclasses
from typing import Literal

from m3ae_tpu.config.evaluation import ProbeConfig
from m3ae_tpu.config.model import ModelConfig
from m3ae_tpu.config.training import RunConfig
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
class PretrainConfig(RunConfig):
    """Everything that decides a pre-training run's bits, and how it is watched."""

    model: ModelConfig = ModelConfig()
    """The network."""
    masking: MaskingConfig = MaskingConfig()
    """Shares of patches and tokens that are hidden, and how they are drawn."""
    loss: LossConfig = LossConfig()
    """Weights of the reconstruction terms."""
    probe: ProbeConfig = ProbeConfig()
    """The k-NN probe during training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        size, patch = self.data.image_size, self.model.patch_size
        require(
            size % patch == 0,
            f"data.image_size = {size} is not a multiple of model.patch_size = {patch}. "
            f"Set --data.image_size={max(1, round(size / patch)) * patch}.",
        )
        for number, source in enumerate(self.data.sources):
            require(
                source.kind == "image" or self.model.vocab_size > 0,
                f"model.vocab_size = 0 leaves out the text parameters that "
                f"data.sources.{number}.kind = {source.kind} needs. "
                "Set model.vocab_size, or kind='image'.",
            )
