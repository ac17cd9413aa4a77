"""Settings of masked pre-training: the network, what is hidden, and the loss."""

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
from m3ae_tpu.config.evaluation import ProbeConfig
from m3ae_tpu.config.model import ModelConfig
from m3ae_tpu.config.training import RunConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """Tokens that are hidden from the encoder, and those that the decoder predicts."""

    image_mask_ratio: float = 0.75
    """Fraction of the image patches that is hidden."""
    text_mask_ratio: float = 0.75
    """Fraction of the text tokens that is hidden."""
    text_dropout: float = 0.0
    """Fraction of the pairs of which the network sees no word at all (modality dropout): it has to
    guess the hidden words from the image alone.
    """
    draw: Literal["per_example", "per_batch"] = "per_example"
    """Mask drawn for each example, or one mask for the whole batch, as in the paper's code."""
    image_predicted_share: float = 1.0
    """Fraction of the hidden patches that the decoder predicts, drawn again at every step.
    Below 1 the decoder is cheaper.
    """
    text_positions: Literal["valid", "all"] = "valid"
    """Positions of a text that may be hidden: its tokens, or padding too, as in the paper's code.
    """

    def __post_init__(self) -> None:
        for name in ("image_mask_ratio", "text_mask_ratio"):
            ratio = getattr(self, name)
            fix = f"Did you mean {ratio / 100}?" if 5 <= ratio <= 100 else "Set 0.75, the default."
            require_field(self, name, 0 <= ratio <= 1, "is not in [0, 1]", fix)
        require_within(self, "[0, 1]", "text_dropout")
        require_within(self, "(0, 1]", "image_predicted_share")
        require_choice(self, "draw", "text_positions")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the reconstruction terms, and the image target."""

    image_weight: float = 1.0
    """Weight of the hidden patches' mean squared error in pairs."""
    text_weight: float = 0.5
    """Weight of the hidden tokens' cross-entropy in pairs."""
    unpaired_image_weight: float = 1.0
    """Weight of the mean squared error of images without text."""
    unpaired_text_weight: float = 0.5
    """Weight of the cross-entropy of texts without an image."""
    norm_pix_loss: bool = False
    """Normalise the pixels of each target patch by its own mean and deviation (He et al. 2022)."""

    def __post_init__(self) -> None:
        require_within(self, "[0, inf)", "image_weight", "text_weight")
        require_within(self, "[0, inf)", "unpaired_image_weight", "unpaired_text_weight")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunConfig):
    """Everything that decides a pre-training run's bits, and how it is watched."""

    model: ModelConfig = ModelConfig()
    """The network."""
    initial_words: Literal["random", "cooccurrence"] = "random"
    """Initial word embeddings and text head: drawn at random, as in the paper's code; or singular
    vectors of how often pieces stand in the same texts of the training data, which short runs do
    not learn. A run without texts has neither.
    """
    masking: MaskingConfig = MaskingConfig()
    """Tokens that are hidden from the encoder, and those that the decoder predicts."""
    loss: LossConfig = LossConfig()
    """Weights of the reconstruction terms, and the image target."""
    probe: ProbeConfig = ProbeConfig()
    """A k-NN probe of frozen features during training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole_patches(self.data.image_size, self.model.patch_size)
        require_choice(self, "initial_words")
        self._require_stored_text_positions()
        self._require_even_tensors()
        for number, source in enumerate(self.data.sources):
            if source.kind != "image" and self.model.vocab_size == 0:
                raise FieldError(
                    "model.vocab_size = 0 builds no text parameters, but "
                    f"data.sources.{number}.kind = {source.kind} has text. "
                    "Set the tokenizer's number of pieces, or kind='image'."
                )

    def _require_stored_text_positions(self) -> None:
        """Raises `FieldError` unless every token has a stored position, if they are stored."""
        texts = [source.text_length for source in self.data.sources if source.kind != "image"]
        stored, needed = self.model.stored_text_positions, max(texts, default=0)
        if 0 < stored < needed:
            raise FieldError(
                f"model.stored_text_positions = {stored} are fewer than the {needed} tokens of an "
                f"example. Set {needed}, or 0 for computed codes."
            )

    def _require_even_tensors(self) -> None:
        """Raises `FieldError` unless heads and vocabulary divide over `mesh.tensor`."""
        sizes = {
            "model.encoder.num_heads": self.model.encoder.num_heads,
            "model.decoder.num_heads": self.model.decoder.num_heads,
            "model.vocab_size": self.model.vocab_size,
        }
        if self.model.decoder.num_layers == 0:
            del sizes["model.decoder.num_heads"]
        require_even_heads(self.mesh.tensor, sizes)
