"""The pre-training task as evaluation and report pose it."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from m3ae_tpu.batch import Rows
from m3ae_tpu.config import Kind, MaskingConfig, PretrainConfig
from m3ae_tpu.data.labelled import LabelledExamples
from m3ae_tpu.model.inputs import Inputs, Normalizer, make_inputs
from m3ae_tpu.model.m3ae import M3AE, Reconstruction
from m3ae_tpu.model.masking import Masks
from m3ae_tpu.train.reconstruction import draw_input_masks, image_targets


@dataclasses.dataclass(frozen=True)
class ReconstructionTask:
    """Hides parts of examples with a run's mask ratios and has its model reconstruct them."""

    kinds: frozenset[Kind]
    """Kinds of examples that the run has learned from."""
    masking: MaskingConfig
    norm_pix_loss: bool
    normalizer: Normalizer

    @classmethod
    def of_run(cls, config: PretrainConfig) -> "ReconstructionTask":
        """Returns the task of a run.

        Every row has a mask of its own, as one mask for a whole batch would depend on how rows are
        batched; every hidden patch is predicted, and visible words count in every row.
        """
        masking = dataclasses.replace(
            config.masking, draw="per_example", image_predicted_share=1.0, text_dropout=0.0
        )
        return cls(
            kinds=frozenset(source.kind for source in config.data.sources),
            masking=masking,
            norm_pix_loss=config.loss.norm_pix_loss,
            normalizer=Normalizer.of_data(config.data),
        )

    @property
    def has_images(self) -> bool:
        return not self.kinds.isdisjoint({"paired", "image"})

    @property
    def has_texts(self) -> bool:
        return not self.kinds.isdisjoint({"paired", "text"})

    @property
    def has_pairs(self) -> bool:
        return "paired" in self.kinds

    def rows(self, examples: LabelledExamples) -> Rows:
        """Returns the images and token ids of examples, as far as the run has learned them."""
        return Rows(
            images=examples.images if self.has_images else None,
            text_ids=examples.text_ids if self.has_texts else None,
            is_valid=examples.is_valid if self.has_texts else None,
        )

    def make_inputs(self, rows: Rows) -> Inputs:
        """Returns the model's inputs for rows of the learned modalities."""
        return make_inputs(rows, self.normalizer, jnp.float32)

    def draw_masks(
        self, model: M3AE, inputs: Inputs, key: Key[Array, ""], places: Int[Array, " batch"]
    ) -> Masks:
        """Draws a mask for each row from the key and the row's place among all examples."""
        return draw_input_masks(model, inputs, key, places, self.masking)

    def reconstruct(self, model: M3AE, inputs: Inputs, masks: Masks) -> Reconstruction:
        """Predicts the hidden tokens; image and text together only if the run has learned pairs."""
        is_single = inputs.images is None or inputs.text_ids is None
        if is_single or self.has_pairs:
            return model.reconstruct(inputs, masks)
        images = model.reconstruct(Inputs(images=inputs.images), masks._replace(text=None))
        texts = model.reconstruct(inputs._replace(images=None), masks._replace(image=None))
        return Reconstruction(images.patches, texts.logits)

    def image_targets(
        self,
        model: M3AE,
        images: Float[Array, "batch height width 3"],
        patches: Int[Array, "batch chosen"],
    ) -> Float[Array, "batch chosen values"]:
        """Returns the values that the run's loss compares with, for some patches of each image."""
        return image_targets(model, images, patches, norm_pix_loss=self.norm_pix_loss)
