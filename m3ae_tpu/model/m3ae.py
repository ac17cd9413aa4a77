"""The multimodal masked autoencoder: one encoder for patches and words, one small decoder."""

import functools
import math
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from m3ae_tpu import scopes
from m3ae_tpu.config import ModelConfig
from m3ae_tpu.model.inputs import Inputs
from m3ae_tpu.model.masking import Masks
from m3ae_tpu.model.modality import Embedding, Modality, Tokens, as_tokens, small_vector
from m3ae_tpu.model.patches import patchify
from m3ae_tpu.model.positions import image_positions, text_positions
from m3ae_tpu.model.transformer import Linear, Transformer
from m3ae_tpu.parallel.operations import Operations


class Features(NamedTuple):
    """The encoder's outputs for a batch; from `encode_layers` with a leading `layers` axis."""

    cls: Float[Array, "*layers batch width"]
    """The class token."""
    image_mean: Float[Array, "*layers batch width"] | None
    """Mean of the patch tokens; None without images."""
    text_mean: Float[Array, "*layers batch width"] | None
    """Mean of the valid text tokens, 0 for a row that has none; None without texts."""
    tokens: Float[Array, "*layers batch tokens width"]
    """Every token: class, patches in row-major order, text."""


class HiddenTokens(NamedTuple):
    """The decoder's outputs for the hidden tokens, in the order of `Selection.hidden`."""

    image: Float[Array, "batch hidden_patches decoder_width"] | None = None
    """None without images."""
    text: Float[Array, "batch hidden_tokens decoder_width"] | None = None
    """None without texts."""


class Reconstruction(NamedTuple):
    """Predictions of the hidden tokens, in the order of `Selection.hidden`."""

    patches: Float[Array, "batch hidden_patches values"] | None
    """In the target space of the loss (`image_targets`); None without images."""
    logits: Float[Array, "batch hidden_tokens vocab"] | None
    """Unnormalised log-probabilities of the token ids; None without texts."""


class M3AE(eqx.Module):
    """Multimodal masked autoencoder (Geng et al. 2022, arXiv 2205.14204, §3).

    Takes images, texts or both: a modality that is left out costs nothing and gets no gradient. All
    leaves are arrays. The class token has no type embedding.
    """

    cls_token: Float[Array, " width"]
    cls_position: Float[Array, " width"] | None
    """The class token's position code beside stored ones of patches; None: it has none."""
    decoder_cls_position: Float[Array, " decoder_width"] | None
    """The same in the decoder."""
    image: Modality
    text: Modality | None
    """None for a model of images alone (`vocab_size = 0`)."""
    encoder: Transformer
    decoder_input: Linear | None
    """None, as all that belongs to a decoder, for an encoder alone (`decoder.num_layers = 0`)."""
    decoder: Transformer | None
    patch_size: int = eqx.field(static=True)
    compute_dtype: jnp.dtype = eqx.field(static=True)
    operations: Operations = eqx.field(static=True)

    def __init__(
        self, config: ModelConfig, *, key: Key[Array, ""], operations: Operations = Operations()
    ):
        """Draws a model's initial values as the paper's code does.

        Matrices are Xavier-uniform, biases 0; class token, type and mask vectors normal with
        standard deviation 0.02, word embeddings with 1.

        Args:
            config: Sizes and dtypes.
            key: Decides every initial value.
            operations: Those of the mesh that the model computes on.
        """
        width, num_values = config.encoder.width, config.patch_size**2 * 3
        dtype = jnp.dtype(config.parameter_dtype)
        keys = jax.random.split(key, 6)
        linear = functools.partial(Linear, dtype=dtype, operations=operations)
        self.cls_token = small_vector(width, key=keys[0], dtype=dtype)
        self.cls_position = self.decoder_cls_position = None
        if config.stored_image_positions > 0:
            self.cls_position = jnp.zeros(width, dtype)
        if config.stored_decoder_positions > 0:
            self.decoder_cls_position = jnp.zeros(config.decoder.width, dtype)
        self.image = Modality(
            lambda key: linear(num_values, width, key=key, name="image.embedding"),
            num_values,
            config,
            positions=_square_positions(config.stored_image_positions, width),
            decoder_positions=_square_positions(
                config.stored_decoder_positions, config.decoder.width
            ),
            key=keys[1],
            operations=operations,
            name="image",
        )
        self.text = None
        if config.vocab_size > 0:
            self.text = Modality(
                lambda key: Embedding(
                    config.vocab_size, width, key=key, dtype=dtype, operations=operations
                ),
                config.vocab_size,
                config,
                positions=_stored_text_positions(config),
                key=keys[2],
                operations=operations,
                name="text",
            )
        self.encoder = Transformer(config.encoder, config, key=keys[3], operations=operations)
        self.decoder_input = self.decoder = None
        if config.decoder.num_layers > 0:
            self.decoder_input = linear(
                width, config.decoder.width, key=keys[4], name="decoder_input"
            )
            self.decoder = Transformer(config.decoder, config, key=keys[5], operations=operations)
        self.patch_size = config.patch_size
        self.compute_dtype = jnp.dtype(config.compute_dtype)
        self.operations = operations

    def encode(self, inputs: Inputs, *, final_norm: bool = True) -> Features:
        """Computes the features of whole examples; nothing is hidden.

        Args:
            inputs: Whole examples.
            final_norm: False returns the last block's tokens, and means of them, before the norm.

        Raises:
            ValueError: neither images nor texts, or texts for a model without text parameters.
        """
        encoded = self.encoder(*self.embed(inputs), final_norm=final_norm)
        return self._features(encoded, inputs)

    def encode_layers(self, inputs: Inputs, *, final_norm: bool = True) -> Features:
        """Computes `encode`'s features after every block; only the last has the final norm."""
        layers = self.encoder.all_layers(*self.embed(inputs), final_norm=final_norm)
        return self._features(layers, inputs)

    def decode_hidden(self, inputs: Inputs, masks: Masks) -> HiddenTokens:
        """Encodes the visible tokens, decodes all, and returns the hidden ones: the heads' inputs.

        Args:
            inputs: Whole examples.
            masks: A selection for every modality of the inputs.

        Raises:
            ValueError: the model has no decoder, a modality of the inputs has no selection, or as
                for `encode`.
        """
        decoder = _required(self.decoder)
        inputs = inputs._replace(is_valid=masks.without_dropped_words(inputs.is_valid))
        with jax.named_scope(scopes.EMBED):
            x, is_valid = self.embed(inputs, masks)
        with jax.named_scope(scopes.ENCODER):
            encoded = self.encoder(x, is_valid)
        with jax.named_scope(scopes.EMBED):
            x, is_valid = self.embed_for_decoder(encoded, inputs, masks)
        with jax.named_scope(scopes.DECODER):
            x = decoder(x, is_valid)
        hidden, start = {}, 1
        for name in self.tokens(inputs):
            num_visible, num_hidden = (places.shape[1] for places in getattr(masks, name))
            start += num_visible + num_hidden
            hidden[name] = x[:, start - num_hidden : start]
        return HiddenTokens(**hidden)

    def reconstruct(self, inputs: Inputs, masks: Masks) -> Reconstruction:
        """Predicts the hidden tokens from the visible ones.

        Holds all logits: for evaluation. Training takes `operations.cross_entropy`.
        """
        hidden = self.decode_hidden(inputs, masks)
        return Reconstruction(
            None if hidden.image is None else self.head("image")(hidden.image),
            None if hidden.text is None else self.head("text")(hidden.text),
        )

    def embed(
        self, inputs: Inputs, masks: Masks = Masks()
    ) -> tuple[Float[Array, "batch tokens width"], Bool[Array, "batch tokens"] | None]:
        """Returns the encoder's input [class, visible patches, visible text].

        Beside it, which of its tokens are valid (None: all).
        """
        embedded = [
            self.modality(name).embed_visible(tokens, getattr(masks, name), self.compute_dtype)
            for name, tokens in self.tokens(inputs).items()
        ]
        shape = embedded[0][0].shape[0], 1, self.cls_token.shape[0]
        spread = functools.partial(
            self.operations.spread, over_rows=as_tokens(shape), dtype=self.compute_dtype
        )
        cls = spread(self.cls_token)
        if self.cls_position is not None:
            cls = cls + spread(self.cls_position)
        return self.operations.constrain(_joined(cls, embedded))

    def embed_for_decoder(
        self, encoded: Float[Array, "batch tokens width"], inputs: Inputs, masks: Masks
    ) -> tuple[
        Float[Array, "batch all_tokens decoder_width"], Bool[Array, "batch all_tokens"] | None
    ]:
        """Returns the decoder's input [class, visible and hidden patches, visible and hidden text].

        Beside it, which of its tokens are valid (None: all).
        """
        x = _required(self.decoder_input)(encoded)
        embedded, start = [], 1
        for name, tokens in self.tokens(inputs).items():
            selection = getattr(masks, name)
            if selection is None:
                raise ValueError(
                    f"masks.{name} is None. Draw a mask for each modality of the inputs."
                )
            stop = start + selection.visible.shape[1]
            embedded.append(
                self.modality(name).embed_for_decoder(x[:, start:stop], tokens, selection)
            )
            start = stop
        cls = x[:, :1]
        if self.decoder_cls_position is not None:
            cls = cls + self.operations.spread(
                self.decoder_cls_position, as_tokens(cls.shape), cls.dtype
            )
        return self.operations.constrain(_joined(cls, embedded))

    def tokens(self, inputs: Inputs) -> dict[Literal["image", "text"], Tokens]:
        """Returns the tokens of each modality that the inputs hold, patches first.

        Raises:
            ValueError: there are none.
        """
        tokens: dict[Literal["image", "text"], Tokens] = {}
        if inputs.images is not None:
            grid = self.grid(inputs.images)
            patches = patchify(inputs.images, self.patch_size)
            tokens["image"] = Tokens(
                patches, None, lambda width: image_positions(grid, width), grid
            )
        if inputs.text_ids is not None:
            length = inputs.text_ids.shape[1]
            tokens["text"] = Tokens(
                inputs.text_ids, inputs.is_valid, lambda width: text_positions(length, width)
            )
        if not tokens:
            raise ValueError("Nothing to encode: give images, texts, or both.")
        return tokens

    def modality(self, name: Literal["image", "text"]) -> Modality:
        """Returns the parameters of a modality.

        Raises:
            ValueError: the model has none for texts.
        """
        modality = self.image if name == "image" else self.text
        if modality is None:
            raise ValueError("The model has vocab_size = 0 and takes no text. Leave the text out.")
        return modality

    def head(self, name: Literal["image", "text"]) -> Linear:
        """Returns the layer that predicts a modality's hidden tokens.

        Raises:
            ValueError: the model has no decoder, or no parameters for texts.
        """
        return _required(self.modality(name).head)

    def grid(self, images: Float[Array, "batch height width 3"]) -> tuple[int, int]:
        """Returns how many rows and columns of patches the images have."""
        return images.shape[1] // self.patch_size, images.shape[2] // self.patch_size

    def _features(
        self, encoded: Float[Array, "*layers batch tokens width"], inputs: Inputs
    ) -> Features:
        start = encoded.shape[-2] - (0 if inputs.text_ids is None else inputs.text_ids.shape[1])
        image_mean = text_mean = None
        if inputs.images is not None:
            image_mean = encoded[..., 1:start, :].mean(axis=-2)
        if inputs.text_ids is not None:
            is_valid = inputs.is_valid
            is_valid = jnp.ones(inputs.text_ids.shape, bool) if is_valid is None else is_valid
            weights = is_valid.astype(encoded.dtype)
            one = jnp.ones((), encoded.dtype)
            weights = weights / jnp.maximum(weights.sum(axis=1, keepdims=True), one)
            text_mean = jnp.einsum("...td,...t->...d", encoded[..., start:, :], weights)
        return Features(encoded[..., 0, :], image_mean, text_mean, encoded)


def _joined(
    cls: Float[Array, "batch 1 width"],
    embedded: list[tuple[Float[Array, "batch _ width"], Bool[Array, "batch _"] | None]],
) -> tuple[Float[Array, "batch tokens width"], Bool[Array, "batch tokens"] | None]:
    """Puts the class token before the modalities' tokens; without padding no mask is made."""
    x = jnp.concatenate([cls, *(tokens for tokens, _ in embedded)], axis=1)
    if all(is_valid is None for _, is_valid in embedded):
        return x, None
    masks = [
        jnp.ones(tokens.shape[:2], bool) if is_valid is None else is_valid
        for tokens, is_valid in [(cls, None), *embedded]
    ]
    return x, jnp.concatenate(masks, axis=1)


def _required[Part](part: Part | None) -> Part:
    """Returns a part of the decoder.

    Raises:
        ValueError: there is none.
    """
    if part is None:
        raise ValueError(
            "The model has decoder.num_layers = 0 and reconstructs nothing. Use its features."
        )
    return part


def _square_positions(num_patches: int, width: int) -> np.ndarray | None:
    """Returns the first values of a square's stored position codes; None for no patches."""
    if num_patches == 0:
        return None
    side = math.isqrt(num_patches)
    return image_positions((side, side), width)


def _stored_text_positions(config: ModelConfig) -> np.ndarray | None:
    if config.stored_text_positions == 0:
        return None
    return text_positions(config.stored_text_positions, config.encoder.width)
