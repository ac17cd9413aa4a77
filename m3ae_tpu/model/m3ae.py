"""The multimodal masked autoencoder: one encoder for patches and words, one small decoder."""

import functools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from m3ae_tpu.config import ModelConfig
from m3ae_tpu.kernels.attention import reference
from m3ae_tpu.kernels.cross_entropy import reference as ce_reference
from m3ae_tpu.model.losses import CrossEntropyFunction
from m3ae_tpu.model.masking import Selection
from m3ae_tpu.model.patches import patchify
from m3ae_tpu.model.positions import image_positions, text_positions
from m3ae_tpu.model.transformer import AttentionFunction, Linear, Transformer


class Features(NamedTuple):
    """What the encoder says of a batch; from `encode_layers` with a leading `layers` axis."""

    cls: Float[Array, "*layers batch width"]
    """The class token's output."""
    image_mean: Float[Array, "*layers batch width"] | None
    """Mean of the patch tokens; None without an image."""
    text_mean: Float[Array, "*layers batch width"] | None
    """Mean of the valid text tokens, 0 for a row without any; None without a text."""
    tokens: Float[Array, "*layers batch tokens width"]
    """Every token: class, patches in row-major order, text."""


class HiddenTokens(NamedTuple):
    """The decoder's outputs for the hidden tokens, in the order of `Selection.hidden`."""

    patches: Float[Array, "batch hidden_patches decoder_width"] | None
    """None without an image."""
    text: Float[Array, "batch hidden_tokens decoder_width"] | None
    """None without a text."""


class Reconstruction(NamedTuple):
    """The decoder's guesses at the hidden tokens, in the order of `Selection.hidden`."""

    patches: Float[Array, "batch hidden_patches values"] | None
    """Normalised pixels (or per-patch normalised ones, by the loss); None without an image."""
    logits: Float[Array, "batch hidden_tokens vocab"] | None
    """Unnormalised log-probabilities of the pieces; None without a text."""


class M3AE(eqx.Module):
    """Multimodal masked autoencoder (Geng et al. 2022, arXiv 2205.14204).

    Takes images, texts or both: what is left out costs nothing and gets no gradient. All leaves
    are arrays; the class token has neither position code nor type embedding.
    """

    cls_token: Float[Array, " width"]
    image_embedding: Linear
    text_embedding: Float[Array, "vocab width"] | None
    encoder_image_type: Float[Array, " width"]
    encoder_text_type: Float[Array, " width"] | None
    encoder: Transformer
    decoder_input: Linear
    image_mask_token: Float[Array, " decoder_width"]
    text_mask_token: Float[Array, " decoder_width"] | None
    decoder_image_type: Float[Array, " decoder_width"]
    decoder_text_type: Float[Array, " decoder_width"] | None
    decoder: Transformer
    image_head: Linear
    text_head: Linear | None
    patch_size: int = eqx.field(static=True)
    compute_dtype: jnp.dtype = eqx.field(static=True)
    cross_entropy_fn: CrossEntropyFunction = eqx.field(static=True)

    def __init__(
        self,
        config: ModelConfig,
        *,
        key: Key[Array, ""],
        attention_fn: AttentionFunction = reference.attention,
        cross_entropy_fn: CrossEntropyFunction = ce_reference.cross_entropy,
    ):
        """Draws a model's initial values as the paper's code does.

        Matrices are Xavier-uniform, biases 0; class token, type and mask embeddings normal with
        standard deviation 0.02, word embeddings with 1.

        Args:
            config: Sizes and dtypes.
            key: Decides every initial value.
            attention_fn: Computes attention from packed queries, keys and values; see `kernels`.
            cross_entropy_fn: Computes the text head and its loss in one; see `kernels`.
        """
        dtype = jnp.dtype(config.parameter_dtype)
        width, decoder_width = config.encoder.width, config.decoder.width
        values = config.patch_size**2 * 3
        keys = iter(jax.random.split(key, 14))

        def small(size: int) -> Array:
            return 0.02 * jax.random.normal(next(keys), (size,), dtype)

        self.cls_token = small(width)
        self.encoder_image_type = small(width)
        self.decoder_image_type = small(decoder_width)
        self.image_mask_token = small(decoder_width)
        self.image_embedding = Linear(values, width, key=next(keys), dtype=dtype)
        self.image_head = Linear(decoder_width, values, key=next(keys), dtype=dtype)
        self.decoder_input = Linear(width, decoder_width, key=next(keys), dtype=dtype)
        stack = functools.partial(
            Transformer,
            attention_fn=attention_fn,
            remat=config.remat,
            unroll=config.unroll,
            dtype=dtype,
        )
        self.encoder = stack(config.encoder, key=next(keys))
        self.decoder = stack(config.decoder, key=next(keys))
        has_text = config.vocab_size > 0
        self.encoder_text_type = small(width) if has_text else None
        self.decoder_text_type = small(decoder_width) if has_text else None
        self.text_mask_token = small(decoder_width) if has_text else None
        self.text_embedding = (
            jax.random.normal(next(keys), (config.vocab_size, width), dtype) if has_text else None
        )
        self.text_head = (
            Linear(decoder_width, config.vocab_size, key=next(keys), dtype=dtype)
            if has_text
            else None
        )
        self.patch_size = config.patch_size
        self.compute_dtype = jnp.dtype(config.compute_dtype)
        self.cross_entropy_fn = cross_entropy_fn

    def encode(
        self,
        images: Float[Array, "batch height width_ 3"] | None = None,
        text: Int[Array, "batch length"] | None = None,
        text_valid: Bool[Array, "batch length"] | None = None,
    ) -> Features:
        """Computes the features of whole images, whole texts, or both; nothing is hidden.

        Args:
            images: Normalised pixels (`patches.normalize_images`); sides are multiples of
                `patch_size`.
            text: int32, piece ids, padded at the end.
            text_valid: True for words, False for padding; None with a text: all are words.

        Raises:
            ValueError: neither an image nor a text, or a text for a model without text parameters.
        """
        x, valid = self.embed(images, text, text_valid)
        return self._features(self.encoder(x, valid), images, text, text_valid)

    def encode_layers(
        self,
        images: Float[Array, "batch height width_ 3"] | None = None,
        text: Int[Array, "batch length"] | None = None,
        text_valid: Bool[Array, "batch length"] | None = None,
    ) -> Features:
        """Computes `encode`'s features after every block, on a leading axis; the last has the final
        norm.
        """
        x, valid = self.embed(images, text, text_valid)
        return self._features(self.encoder.all_layers(x, valid), images, text, text_valid)

    def grid(self, images: Float[Array, "batch height width_ 3"]) -> tuple[int, int]:
        """Returns how many rows and columns of patches the images have."""
        return images.shape[1] // self.patch_size, images.shape[2] // self.patch_size

    def embed(
        self,
        images: Float[Array, "batch height width_ 3"] | None = None,
        text: Int[Array, "batch length"] | None = None,
        text_valid: Bool[Array, "batch length"] | None = None,
    ) -> tuple[Float[Array, "batch tokens width"], Bool[Array, "batch tokens"] | None]:
        """Returns the encoder's input for whole examples, and which of its tokens are valid (None:
        all).
        """
        return self.embed_visible(images, None, text, text_valid, None)

    def embed_visible(
        self,
        images: Float[Array, "batch height width_ 3"] | None,
        image_selection: Selection | None,
        text: Int[Array, "batch length"] | None,
        text_valid: Bool[Array, "batch length"] | None,
        text_selection: Selection | None,
    ) -> tuple[Float[Array, "batch tokens width"], Bool[Array, "batch tokens"] | None]:
        """Returns the encoder's input [class, visible patches, visible text] and which tokens are
        valid.

        Patches are gathered before they are embedded. A selection of None leaves all visible.
        """
        dtype = self.compute_dtype
        parts, valid_parts = [], []
        if images is not None:
            positions = self._positions(
                image_positions(self.grid(images), self.cls_token.shape[0]), image_selection
            )
            patches = patchify(images, self.patch_size)
            if image_selection is not None:
                patches = _gather(patches, image_selection.visible)
            x = (
                self.image_embedding(patches.astype(dtype))
                + positions
                + _row(self.encoder_image_type, dtype)
            )
            parts.append(x)
            valid_parts.append(jnp.ones(x.shape[:2], bool))
        if text is not None:
            if self.text_embedding is None:
                raise ValueError(
                    "The model has vocab_size = 0 and takes no text. Leave the text out."
                )
            positions = self._positions(
                text_positions(text.shape[1], self.cls_token.shape[0]), text_selection
            )
            if text_selection is not None:
                text = _gather(text, text_selection.visible)
                text_valid = (
                    None if text_valid is None else _gather(text_valid, text_selection.visible)
                )
            x = (
                self.text_embedding[text].astype(dtype)
                + positions
                + _row(self.encoder_text_type, dtype)
            )
            parts.append(x)
            valid_parts.append(jnp.ones(x.shape[:2], bool) if text_valid is None else text_valid)
        if not parts:
            raise ValueError("Nothing to encode: give images, text, or both.")
        batch = parts[0].shape[0]
        cls = jnp.broadcast_to(_row(self.cls_token, dtype), (batch, 1, self.cls_token.shape[0]))
        valid = None
        if text_valid is not None:
            valid = jnp.concatenate([jnp.ones((batch, 1), bool), *valid_parts], axis=1)
        return jnp.concatenate([cls, *parts], axis=1), valid

    def embed_for_decoder(
        self,
        encoded: Float[Array, "batch tokens width"],
        images: Float[Array, "batch height width_ 3"] | None,
        image_selection: Selection | None,
        text: Int[Array, "batch length"] | None,
        text_valid: Bool[Array, "batch length"] | None,
        text_selection: Selection | None,
    ) -> tuple[
        Float[Array, "batch all_tokens decoder_width"], Bool[Array, "batch all_tokens"] | None
    ]:
        """Returns the decoder's input [class, visible and hidden patches, visible and hidden text].

        Attention knows no order and every token carries its own position code, so tokens are never
        sorted back: hidden ones are appended to the visible ones of their modality.
        """
        x = self.decoder_input(encoded)
        width, dtype, batch = x.shape[2], x.dtype, x.shape[0]
        parts, start = [x[:, :1]], 1
        valid_parts = [jnp.ones((batch, 1), bool)]

        def append(
            selection: Selection, table, mask_token: Array | None, type_embedding: Array | None
        ) -> Array:
            num_visible, num_hidden = selection.visible.shape[1], selection.hidden.shape[1]
            hidden = jnp.broadcast_to(_row(mask_token, dtype), (batch, num_hidden, width))
            part = jnp.concatenate([x[:, start : start + num_visible], hidden], axis=1)
            order = jnp.concatenate(selection, axis=1)
            parts.append(part + jnp.asarray(table, dtype)[order] + _row(type_embedding, dtype))
            return order

        if images is not None and image_selection is not None:
            table = image_positions(self.grid(images), width)
            order = append(image_selection, table, self.image_mask_token, self.decoder_image_type)
            valid_parts.append(jnp.ones(order.shape, bool))
            start += image_selection.visible.shape[1]
        if text is not None and text_selection is not None:
            table = text_positions(text.shape[1], width)
            order = append(text_selection, table, self.text_mask_token, self.decoder_text_type)
            valid_parts.append(
                jnp.ones(order.shape, bool) if text_valid is None else _gather(text_valid, order)
            )
        valid = None if text_valid is None else jnp.concatenate(valid_parts, axis=1)
        return jnp.concatenate(parts, axis=1), valid

    def decode_hidden(
        self,
        images: Float[Array, "batch height width_ 3"] | None,
        image_selection: Selection | None,
        text: Int[Array, "batch length"] | None,
        text_valid: Bool[Array, "batch length"] | None,
        text_selection: Selection | None,
    ) -> HiddenTokens:
        """Encodes the visible tokens and decodes all; returns the hidden ones, which the heads run
        on.

        Args:
            images: Normalised pixels of whole images, or None without an image.
            image_selection: The visible and hidden patches, or None without an image.
            text: int32, piece ids of whole texts, or None without a text.
            text_valid: True for words, False for padding; None: all are words.
            text_selection: The visible and hidden text positions, or None without a text.
        """
        with jax.named_scope("embed"):
            x, valid = self.embed_visible(images, image_selection, text, text_valid, text_selection)
        with jax.named_scope("encoder"):
            encoded = self.encoder(x, valid)
        with jax.named_scope("embed"):
            x, valid = self.embed_for_decoder(
                encoded, images, image_selection, text, text_valid, text_selection
            )
        with jax.named_scope("decoder"):
            x = self.decoder(x, valid)
        hidden_patches = hidden_text = None
        start = 1
        if image_selection is not None:
            num_visible, num_hidden = (
                image_selection.visible.shape[1],
                image_selection.hidden.shape[1],
            )
            hidden_patches = x[:, start + num_visible : start + num_visible + num_hidden]
            start += num_visible + num_hidden
        if text_selection is not None:
            hidden_text = x[:, start + text_selection.visible.shape[1] :]
        return HiddenTokens(hidden_patches, hidden_text)

    def reconstruct(
        self,
        images: Float[Array, "batch height width_ 3"] | None,
        image_selection: Selection | None,
        text: Int[Array, "batch length"] | None,
        text_valid: Bool[Array, "batch length"] | None,
        text_selection: Selection | None,
    ) -> Reconstruction:
        """Guesses the hidden tokens from the visible ones; arguments are those of `decode_hidden`.

        Holds all logits: for images and evaluation. Training takes `cross_entropy_fn`.
        """
        hidden = self.decode_hidden(images, image_selection, text, text_valid, text_selection)
        guessed_patches = None if hidden.patches is None else self.image_head(hidden.patches)
        if hidden.text is None or self.text_head is None:
            return Reconstruction(guessed_patches, None)
        return Reconstruction(guessed_patches, self.text_head(hidden.text))

    def _positions(self, table, selection: Selection | None) -> Float[Array, "..."]:
        table = jnp.asarray(table, self.compute_dtype)
        return table[None] if selection is None else table[selection.visible]

    def _features(
        self, tokens: Array, images: Array | None, text: Array | None, text_valid: Array | None
    ) -> Features:
        num_text = 0 if text is None else text.shape[1]
        num_tokens = tokens.shape[-2]
        image_mean = text_mean = None
        if images is not None:
            image_mean = tokens[..., 1 : num_tokens - num_text, :].mean(axis=-2)
        if text is not None:
            is_word = jnp.ones(text.shape, bool) if text_valid is None else text_valid
            weights = is_word.astype(tokens.dtype)
            weights = weights / jnp.maximum(
                weights.sum(axis=1, keepdims=True), jnp.ones((), tokens.dtype)
            )
            text_mean = jnp.einsum(
                "...td,...t->...d", tokens[..., num_tokens - num_text :, :], weights
            )
        return Features(tokens[..., 0, :], image_mean, text_mean, tokens)


def _gather(tokens: Array, positions: Int[Array, "batch kept"]) -> Array:
    """Picks each row's own positions along the token axis."""
    index = positions.reshape(positions.shape + (1,) * (tokens.ndim - 2))
    return jnp.take_along_axis(tokens, index, axis=1)


def _row(vector: Array | None, dtype: jnp.dtype) -> Array:
    """Shapes a vector for adding to [batch, tokens, width]. A model without text has none for it."""
    if vector is None:
        raise ValueError("The model has vocab_size = 0 and takes no text. Leave the text out.")
    return vector.astype(dtype)[None, None]
