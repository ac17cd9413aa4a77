"""A modality: how its tokens enter encoder and decoder, and how hidden ones are predicted."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from m3ae_tpu.config import ModelConfig
from m3ae_tpu.model.masking import Selection
from m3ae_tpu.model.transformer import Linear
from m3ae_tpu.parallel.operations import Operations


class Tokens(NamedTuple):
    """The tokens of one modality in a batch, before any is hidden or embedded."""

    values: Float[Array, "batch tokens values"] | Int[Array, "batch tokens"]
    """Patches, or token ids."""
    is_valid: Bool[Array, "batch tokens"] | None
    """False for padding; None: none of them is padding."""
    position_codes: Callable[[int], np.ndarray]
    """Computes sine-cosine codes [tokens, width] for a width."""


class Embedding(eqx.Module):
    """A vector for each token id."""

    table: Float[Array, "vocab width"]
    operations: Operations = eqx.field(static=True)

    def __init__(
        self,
        vocab: int,
        width: int,
        *,
        key: Key[Array, ""],
        dtype: DTypeLike,
        operations: Operations = Operations(),
    ):
        """Draws the table from a standard normal distribution."""
        self.table = jax.random.normal(key, (vocab, width), dtype)
        self.operations = operations

    def __call__(self, ids: Int[Array, "batch tokens"]) -> Float[Array, "batch tokens width"]:
        return self.operations.lookup(self.table, ids)


class Modality(eqx.Module):
    """The parameters of one modality around the shared encoder and decoder."""

    embedding: Linear | Embedding
    encoder_type: Float[Array, " width"]
    decoder_type: Float[Array, " decoder_width"]
    mask_token: Float[Array, " decoder_width"]
    head: Linear
    positions: Float[Array, "tokens width"] | None
    """Position codes of an imported encoder; None: fixed ones are computed."""

    def __init__(
        self,
        embedding: Callable[[Key[Array, ""]], Linear | Embedding],
        num_outputs: int,
        config: ModelConfig,
        *,
        positions: np.ndarray | None,
        key: Key[Array, ""],
        operations: Operations,
        name: str,
    ):
        """Draws the initial values: type and mask vectors with standard deviation 0.02.

        Args:
            embedding: Draws the embedding from a key.
            num_outputs: Values that the head predicts of a token.
            config: The whole model's settings.
            positions: Initial values of stored position codes; None computes codes.
            key: Decides every initial value.
            operations: Computes the head.
            name: The modality's.
        """
        dtype, width, decoder_width = (
            config.parameter_dtype,
            config.encoder.width,
            config.decoder.width,
        )
        keys = jax.random.split(key, 5)
        self.embedding = embedding(keys[0])
        self.encoder_type = small_vector(width, key=keys[1], dtype=dtype)
        self.decoder_type = small_vector(decoder_width, key=keys[2], dtype=dtype)
        self.mask_token = small_vector(decoder_width, key=keys[3], dtype=dtype)
        self.head = Linear(
            decoder_width,
            num_outputs,
            key=keys[4],
            dtype=dtype,
            operations=operations,
            name=f"{name}.head",
        )
        self.positions = None if positions is None else jnp.asarray(positions, dtype)

    def embed_visible(
        self, tokens: Tokens, selection: Selection | None, dtype: DTypeLike
    ) -> tuple[Float[Array, "batch visible width"], Bool[Array, "batch visible"] | None]:
        """Returns the encoder's input for the visible tokens, and which are valid (None: all).

        Hidden tokens are left out before anything is computed from them. Without a selection all
        tokens are visible.
        """
        values, is_valid = tokens.values, tokens.is_valid
        codes = jnp.asarray(self._codes(tokens), dtype)[None]
        if selection is not None:
            values, codes = gather(values, selection.visible), codes[0][selection.visible]
            is_valid = None if is_valid is None else gather(is_valid, selection.visible)
        if jnp.issubdtype(values.dtype, jnp.floating):
            values = values.astype(dtype)
        x = self.embedding(values).astype(dtype)
        return x + codes + as_token(self.encoder_type, dtype), is_valid

    def embed_for_decoder(
        self, encoded: Float[Array, "batch visible width"], tokens: Tokens, selection: Selection
    ) -> tuple[Float[Array, "batch tokens width"], Bool[Array, "batch tokens"] | None]:
        """Returns the decoder's input: the visible tokens, then a mask token for each hidden one.

        Tokens are never sorted back: attention knows no order, and every token carries its own
        position code.

        Args:
            encoded: The visible tokens as the encoder leaves them, in the decoder's width.
            tokens: The modality's tokens in the batch, visible and hidden.
            selection: The visible and hidden ones.
        """
        dtype, width = encoded.dtype, encoded.shape[2]
        hidden = jnp.broadcast_to(
            as_token(self.mask_token, dtype), (*selection.hidden.shape, width)
        )
        order = jnp.concatenate(selection, axis=1)
        codes = jnp.asarray(tokens.position_codes(width), dtype)[order]
        x = jnp.concatenate([encoded, hidden], axis=1) + codes
        is_valid = None if tokens.is_valid is None else gather(tokens.is_valid, order)
        return x + as_token(self.decoder_type, dtype), is_valid

    def _codes(self, tokens: Tokens) -> Float[Array, "tokens width"] | np.ndarray:
        if self.positions is None:
            return tokens.position_codes(self.encoder_type.shape[0])
        num_tokens, num_stored = tokens.values.shape[1], self.positions.shape[0]
        if num_tokens > num_stored:
            raise ValueError(
                f"{num_tokens} tokens, but the model stores the positions of {num_stored}. "
                "Give smaller images or shorter texts."
            )
        return self.positions[:num_tokens]


def small_vector(width: int, *, key: Key[Array, ""], dtype: DTypeLike) -> Float[Array, " width"]:
    """Draws a vector with standard deviation 0.02."""
    return 0.02 * jax.random.normal(key, (width,), dtype)


def as_token(vector: Float[Array, " width"], dtype: DTypeLike) -> Float[Array, "1 1 width"]:
    """Shapes a vector for adding to [batch, tokens, width]."""
    return vector.astype(dtype)[None, None]


def gather(tokens: Array, positions: Int[Array, "batch kept"]) -> Array:
    """Picks each row's own positions along the token axis."""
    index = positions.reshape(positions.shape + (1,) * (tokens.ndim - 2))
    return jnp.take_along_axis(tokens, index, axis=1)
