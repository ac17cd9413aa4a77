"""A modality: how its tokens enter encoder and decoder, and how hidden ones are predicted."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

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
    grid: tuple[int, int] | None = None
    """Rows and columns of patches; None for tokens in a line."""


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

    def __call__(
        self, ids: Int[Array, "batch tokens"], dtype: DTypeLike
    ) -> Float[Array, "batch tokens width"]:
        return self.operations.lookup(self.table, ids, dtype)


class Modality(eqx.Module):
    """The parameters of one modality around the shared encoder and decoder."""

    embedding: Linear | Embedding
    encoder_type: Float[Array, " width"]
    decoder_type: Float[Array, " decoder_width"] | None
    """None, as mask token and head, in a model without a decoder."""
    mask_token: Float[Array, " decoder_width"] | None
    head: Linear | None
    positions: Float[Array, "tokens width"] | None
    """Position codes of an imported encoder; None: fixed ones are computed."""
    decoder_positions: Float[Array, "tokens decoder_width"] | None
    """The same of an imported decoder."""
    operations: Operations = eqx.field(static=True)

    def __init__(
        self,
        embedding: Callable[[Key[Array, ""]], Linear | Embedding],
        num_outputs: int,
        config: ModelConfig,
        *,
        positions: np.ndarray | None,
        decoder_positions: np.ndarray | None = None,
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
            decoder_positions: The same for the decoder.
            key: Decides every initial value.
            operations: Those of the mesh that the model computes on.
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
        self.decoder_type = self.mask_token = self.head = None
        if config.decoder.num_layers > 0:
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
        self.positions, self.decoder_positions = (
            None if codes is None else jnp.asarray(codes, dtype)
            for codes in (positions, decoder_positions)
        )
        self.operations = operations

    def embed_visible(
        self, tokens: Tokens, selection: Selection | None, dtype: DTypeLike
    ) -> tuple[Float[Array, "batch visible width"], Bool[Array, "batch visible"] | None]:
        """Returns the encoder's input for the visible tokens, and which are valid (None: all).

        Hidden tokens are left out before anything is computed from them. Without a selection all
        tokens are visible.
        """
        values, is_valid = tokens.values, tokens.is_valid
        if selection is not None:
            values = gather(values, selection.visible)
            is_valid = None if is_valid is None else gather(is_valid, selection.visible)
        if isinstance(self.embedding, Embedding):
            x = self.embedding(values, dtype)
        else:
            x = self.embedding(values.astype(dtype))

        def of_rows(codes: Array) -> Array:
            return codes[None] if selection is None else codes[selection.visible]

        codes = _codes(tokens, self.positions, self.encoder_type.shape[0], dtype)
        codes = self.operations.spread(codes, of_rows, dtype)
        own_type = self.operations.spread(self.encoder_type, as_tokens(x.shape), dtype)
        return x + codes + own_type, is_valid

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
        assert self.mask_token is not None
        assert self.decoder_type is not None
        dtype, width = encoded.dtype, encoded.shape[2]
        hidden = self.operations.spread(
            self.mask_token, as_tokens((*selection.hidden.shape, width)), dtype
        )
        order = jnp.concatenate(selection, axis=1)
        codes = _codes(tokens, self.decoder_positions, width, dtype)
        codes = self.operations.spread(codes, lambda codes: codes[order], dtype)
        x = jnp.concatenate([encoded, hidden], axis=1) + codes
        is_valid = None if tokens.is_valid is None else gather(tokens.is_valid, order)
        own_type = self.operations.spread(self.decoder_type, as_tokens(x.shape), dtype)
        return x + own_type, is_valid


def small_vector(width: int, *, key: Key[Array, ""], dtype: DTypeLike) -> Float[Array, " width"]:
    """Draws a vector with standard deviation 0.02."""
    return 0.02 * jax.random.normal(key, (width,), dtype)


def as_tokens(shape: tuple[Any, ...]) -> Callable[[Float[Array, " width"]], Array]:
    """Returns a function that repeats a vector to a shape [batch, tokens, width].

    Exported programs have a symbol for the batch.
    """
    return lambda vector: jnp.broadcast_to(vector[None, None], shape)


def resized_positions(
    table: Float[Array, "patches width"], grid: tuple[int, int]
) -> Float[Array, "resized width"]:
    """Resizes the position codes of a square grid of patches to another grid.

    Antialiased cubic interpolation, as timm's `resample_abs_pos_embed`, in float32 or wider. The
    table's own grid leaves it as it is.

    Args:
        table: Codes in row-major order.
        grid: Rows and columns that are wanted.
    """
    side = math.isqrt(table.shape[0])
    if grid == (side, side):
        return table
    square = table.reshape(side, side, -1).astype(np.promote_types(table.dtype, np.float32))
    resized = jax.image.resize(square, (*grid, square.shape[2]), "cubic", antialias=True)
    return resized.reshape(-1, square.shape[2])


def _codes(
    tokens: Tokens, stored: Float[Array, "stored width"] | None, width: int, dtype: DTypeLike
) -> Float[Array, "tokens width"]:
    """Returns the position codes of all tokens: the stored ones, or ones computed in a dtype."""
    if stored is None:
        return jnp.asarray(tokens.position_codes(width), dtype)
    if tokens.grid is not None:
        return resized_positions(stored, tokens.grid)
    num_tokens, num_stored = tokens.values.shape[1], stored.shape[0]
    if num_tokens > num_stored:
        raise ValueError(
            f"{num_tokens} tokens, but the model stores the positions of {num_stored}. "
            "Give shorter texts."
        )
    return stored[:num_tokens]


def gather(tokens: Array, positions: Int[Array, "batch kept"]) -> Array:
    """Picks each row's own positions along the token axis."""
    index = positions.reshape(positions.shape + (1,) * (tokens.ndim - 2))
    return jnp.take_along_axis(tokens, index, axis=1)
