"""The pre-norm Transformer that both encoder and decoder are, and the layers in it."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Key

from m3ae_tpu.config import TransformerConfig

type AttentionFunction = Callable[
    [Float[Array, "batch tokens 3 width"], Bool[Array, "batch tokens"] | None, int],
    Float[Array, "batch tokens width"],
]


class Linear(eqx.Module):
    """x @ kernel + bias, in the dtype of x."""

    kernel: Float[Array, "*layers inputs outputs"]
    bias: Float[Array, "*layers outputs"]

    def __init__(
        self, inputs: int, outputs: int, *, key: Key[Array, ""], dtype: DTypeLike = jnp.float32
    ):
        """Draws a Xavier-uniform kernel (fan-in and fan-out of the matrix as stored) and a zero
        bias.
        """
        limit = (6 / (inputs + outputs)) ** 0.5
        self.kernel = jax.random.uniform(key, (inputs, outputs), dtype, -limit, limit)
        self.bias = jnp.zeros((outputs,), dtype)

    def __call__(
        self, x: Float[Array, "batch tokens inputs"]
    ) -> Float[Array, "batch tokens outputs"]:
        # As one matrix: on CPUs a gradient that contracts batch and tokens apart takes half as long
        # again.
        rows = x.reshape(-1, x.shape[-1])
        y = rows @ self.kernel.astype(x.dtype) + self.bias.astype(x.dtype)[None]
        return y.reshape(*x.shape[:2], -1)


class LayerNorm(eqx.Module):
    """Layer normalisation with scale and bias, epsilon 1e-6, computed in float32 or wider."""

    scale: Float[Array, "*layers width"]
    bias: Float[Array, "*layers width"]

    def __init__(self, width: int, *, dtype: DTypeLike = jnp.float32):
        self.scale = jnp.ones((width,), dtype)
        self.bias = jnp.zeros((width,), dtype)

    @jax.named_scope("norm")
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        wide = np.promote_types(x.dtype, np.float32)
        y = x.astype(wide)
        y = y - y.mean(axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + 1e-6)
        y = y * self.scale.astype(wide)[None, None] + self.bias.astype(wide)[None, None]
        return y.astype(x.dtype)


class Block(eqx.Module):
    """One block: x + attention(norm(x)), then x + mlp(norm(x)).

    For the gradient it keeps its inputs and what matrix products and attention give. Norms and GELU
    are computed again: all that they are made of would be four times as much to keep. A block whose
    arrays have one more leading axis is a stack of blocks: see `Transformer`.
    """

    attention_norm: LayerNorm
    attention_in: Linear
    attention_out: Linear
    mlp_norm: LayerNorm
    mlp_in: Linear
    mlp_out: Linear
    num_heads: int = eqx.field(static=True)
    attention_fn: AttentionFunction = eqx.field(static=True)

    def __init__(
        self,
        config: TransformerConfig,
        *,
        key: Key[Array, ""],
        attention_fn: AttentionFunction,
        dtype: DTypeLike = jnp.float32,
    ):
        width, hidden = config.width, config.width * config.mlp_ratio
        keys = jax.random.split(key, 4)
        self.attention_norm = LayerNorm(width, dtype=dtype)
        self.attention_in = Linear(width, 3 * width, key=keys[0], dtype=dtype)
        self.attention_out = Linear(width, width, key=keys[1], dtype=dtype)
        self.mlp_norm = LayerNorm(width, dtype=dtype)
        self.mlp_in = Linear(width, hidden, key=keys[2], dtype=dtype)
        self.mlp_out = Linear(hidden, width, key=keys[3], dtype=dtype)
        self.num_heads = config.num_heads
        self.attention_fn = attention_fn

    def project_qkv(
        self, x: Float[Array, "batch tokens width"]
    ) -> Float[Array, "batch tokens 3 width"]:
        """Computes the queries, keys and values that the block's attention sees."""
        return self.attention_in(self.attention_norm(x)).reshape(*x.shape[:2], 3, x.shape[2])

    def __call__(
        self, x: Float[Array, "batch tokens width"], valid: Bool[Array, "batch tokens"] | None
    ) -> Float[Array, "batch tokens width"]:
        qkv = _keeping_inputs(self.project_qkv)(x)
        with jax.named_scope("attention"):
            attended = self.attention_fn(qkv, valid, self.num_heads)
        x = x + self.attention_out(attended)
        with jax.named_scope("mlp"):
            hidden = _keeping_inputs(lambda x: self.mlp_in(self.mlp_norm(x)))(x)
            return x + _keeping_inputs(lambda hidden: self.mlp_out(_gelu(hidden)))(hidden)


def _keeping_inputs(function: Callable) -> Callable:
    """Keeps the inputs of `function` for its gradient, and nothing between. A product at its end is
    not repeated: no gradient needs its result."""
    # A new function, as methods of modules have no hash. The loop over blocks keeps forward and
    # backward apart.
    return jax.checkpoint(lambda *inputs: function(*inputs), prevent_cse=False)


def _gelu(x: Float[Array, "batch tokens hidden"]) -> Float[Array, "batch tokens hidden"]:
    return jax.nn.gelu(x, approximate=True)


class Transformer(eqx.Module):
    """A stack of equal blocks and a final norm; compiled once and scanned, so compile time does not
    grow with depth.
    """

    blocks: Block
    norm: LayerNorm
    remat: bool = eqx.field(static=True)
    unroll: int = eqx.field(static=True)

    def __init__(
        self,
        config: TransformerConfig,
        *,
        key: Key[Array, ""],
        attention_fn: AttentionFunction,
        remat: bool = False,
        unroll: int = 1,
        dtype: DTypeLike = jnp.float32,
    ):
        keys = jax.random.split(key, config.num_layers)
        self.blocks = eqx.filter_vmap(
            lambda key: Block(config, key=key, attention_fn=attention_fn, dtype=dtype)
        )(keys)
        self.norm = LayerNorm(config.width, dtype=dtype)
        self.remat = remat
        self.unroll = unroll

    def __call__(
        self, x: Float[Array, "batch tokens width"], valid: Bool[Array, "batch tokens"] | None
    ) -> Float[Array, "batch tokens width"]:
        """Encodes tokens; where `valid` is False they change no other token's output.

        Args:
            x: Embedded tokens in the compute dtype; the output has it too.
            valid: True for tokens that may be attended to; None: all.
        """

        def apply(x: Array, block: Block) -> tuple[Array, None]:
            return block(x, valid), None

        x, _ = jax.lax.scan(
            _keeping_inputs(apply) if self.remat else apply, x, self.blocks, unroll=self.unroll
        )
        return self.norm(x)

    def all_layers(
        self, x: Float[Array, "batch tokens width"], valid: Bool[Array, "batch tokens"] | None
    ) -> Float[Array, "layers batch tokens width"]:
        """Encodes tokens and returns them after each block; after the last one with the final norm."""

        def apply(x: Array, block: Block) -> tuple[Array, Array]:
            x = block(x, valid)
            return x, x

        x, layers = jax.lax.scan(apply, x, self.blocks)
        return layers.at[-1].set(self.norm(x))
