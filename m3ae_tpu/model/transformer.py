"""The pre-norm Transformer that encoder and decoder both are, and the layers in it."""

import functools
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from m3ae_tpu import scopes
from m3ae_tpu.config import ModelConfig, TransformerConfig
from m3ae_tpu.kernels.attention import Parts, packed
from m3ae_tpu.model.rewrites import (
    gelu_by_sigmoid,
    gelu_of_kept_input,
    moments,
    norm_of_moments,
    standardize,
)
from m3ae_tpu.parallel.operations import Operations
from m3ae_tpu.parallel.slots import put

_GELU = {
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_erf": lambda x: jax.nn.gelu(x, approximate=False),
}


class Linear(eqx.Module):
    """A product with a kernel, and a bias, in the dtype of x."""

    kernel: Float[Array, "*layers inputs outputs"] | Float[Array, "*layers inputs three outputs"]
    bias: Float[Array, "*layers outputs"] | Float[Array, "*layers three outputs"]
    operations: Operations = eqx.field(static=True)
    name: str = eqx.field(static=True)
    """End of the dotted name of the kernel, see `parallel.rules`."""

    def __init__(
        self,
        inputs: int,
        *outputs: int,
        key: Key[Array, ""],
        dtype: DTypeLike = jnp.float32,
        operations: Operations = Operations(),
        name: str = "",
    ):
        """Draws a Xavier-uniform kernel and a zero bias.

        Args:
            inputs: Fan-in.
            outputs: Axes of the output; their product is the fan-out.
            key: Decides the kernel.
            dtype: Dtype of the parameters.
            operations: Computes the product.
            name: End of the dotted name of this layer, by which a mesh cuts the kernel.
        """
        limit = (6 / (inputs + math.prod(outputs))) ** 0.5
        self.kernel = jax.random.uniform(key, (inputs, *outputs), dtype, -limit, limit)
        self.bias = jnp.zeros(outputs, dtype)
        self.operations, self.name = operations, f"{name}.kernel"

    def __call__(
        self, x: Float[Array, "batch tokens inputs"]
    ) -> Float[Array, "batch tokens *outputs"]:
        return self.operations.linear(x, self.kernel, self.bias, self.name)

    def parts(self, x: Float[Array, "batch tokens inputs"]) -> Parts:
        """Computes the three parts of the output, each as a product of its own."""
        query, key, value = (
            self.operations.linear(x, self.kernel[:, part], self.bias[part], self.name)
            for part in range(3)
        )
        return query, key, value


class LayerNorm(eqx.Module):
    """Layer normalisation with scale and bias, computed in float32 or wider."""

    scale: Float[Array, "*layers width"]
    bias: Float[Array, "*layers width"]
    epsilon: float = eqx.field(static=True)

    def __init__(self, width: int, *, epsilon: float = 1e-6, dtype: DTypeLike = jnp.float32):
        self.scale = jnp.ones((width,), dtype)
        self.bias = jnp.zeros((width,), dtype)
        self.epsilon = epsilon

    @jax.named_scope(scopes.NORM)
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        wide = np.promote_types(x.dtype, np.float32)
        y = x.astype(wide)
        y = y - y.mean(axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + self.epsilon)
        y = y * self.scale.astype(wide)[None, None] + self.bias.astype(wide)[None, None]
        return y.astype(x.dtype)


def _folded(norm: LayerNorm, linear: Linear) -> Linear:
    """Returns the layer for standardized values whose output is linear(norm(x))."""
    scale = norm.scale.reshape(-1, *[1] * linear.bias.ndim)
    shift = jnp.tensordot(norm.bias, linear.kernel, 1, precision=jax.lax.Precision.HIGHEST)
    folded = scale * linear.kernel, shift + linear.bias
    return eqx.tree_at(lambda linear: (linear.kernel, linear.bias), linear, folded)


class Block(eqx.Module):
    """One block: x + attention(norm(x)), then x + mlp(norm(x)).

    For the gradient it keeps its inputs and the results of matrix products and attention. Norms and
    GELU are computed again: their intermediates would take four times as much memory. A block whose
    arrays have one more leading axis is a stack of blocks: see `Transformer`.
    """

    attention_norm: LayerNorm
    attention_in: Linear
    """Kernel [width, 3, width]: heads are contiguous on the last axis, so a mesh can cut them."""
    attention_out: Linear
    mlp_norm: LayerNorm
    mlp_in: Linear
    mlp_out: Linear
    num_heads: int = eqx.field(static=True)
    activation: str = eqx.field(static=True)
    operations: Operations = eqx.field(static=True)

    def __init__(
        self,
        stack: TransformerConfig,
        config: ModelConfig,
        *,
        key: Key[Array, ""],
        operations: Operations,
    ):
        width, hidden, dtype = stack.width, stack.width * stack.mlp_ratio, config.parameter_dtype
        keys = jax.random.split(key, 4)
        linear = functools.partial(Linear, dtype=dtype, operations=operations)
        self.attention_norm = LayerNorm(width, epsilon=config.norm_epsilon, dtype=dtype)
        self.attention_in = linear(width, 3, width, key=keys[0], name="blocks.attention_in")
        self.attention_out = linear(width, width, key=keys[1], name="blocks.attention_out")
        self.mlp_norm = LayerNorm(width, epsilon=config.norm_epsilon, dtype=dtype)
        self.mlp_in = linear(width, hidden, key=keys[2], name="blocks.mlp_in")
        self.mlp_out = linear(hidden, width, key=keys[3], name="blocks.mlp_out")
        self.num_heads = stack.num_heads
        self.activation = config.activation
        self.operations = operations

    def project_qkv(
        self, x: Float[Array, "batch tokens width"]
    ) -> Float[Array, "batch tokens 3 width"] | Parts:
        """Computes the queries, keys and values that the block's attention sees."""
        return self._qkv(self._normed(self.attention_norm, x))

    def _qkv(self, x: Array) -> Array | Parts:
        has_parts = self.operations.forms.has_three_products
        return self.attention_in.parts(x) if has_parts else self.attention_in(x)

    def folded(self) -> "Block":
        """Returns the block with its norms' scales and biases in the layers after them.

        Where the forms fold norms, `__call__` and `project_qkv` are those of a folded block.
        """
        return eqx.tree_at(
            lambda block: (block.attention_in, block.mlp_in),
            self,
            (_folded(self.attention_norm, self.attention_in), _folded(self.mlp_norm, self.mlp_in)),
        )

    def _normed(self, norm: LayerNorm, x: Array) -> Array:
        if not self.operations.forms.folds_norms:
            return norm(x)
        rows = x.reshape(-1, x.shape[-1]) if self.operations.forms.sums_rows else x
        with jax.named_scope(scopes.NORM):
            y: Any = standardize(rows, norm.epsilon)
            return y.reshape(x.shape)

    def _after_norm(self, function: Callable, norm: LayerNorm, x: Array) -> Any:
        """Returns function(norm(x)); x alone is kept, and its moments where the forms say so."""
        if not self.operations.forms.keeps_moments:
            return _remat(lambda x: function(self._normed(norm, x)))(x)

        def of_moments(x, kept):
            with jax.named_scope(scopes.NORM):
                x = norm_of_moments(x, kept, norm.scale, norm.bias)
            return function(x)

        with jax.named_scope(scopes.NORM):
            kept = moments(x, norm.epsilon)
        return _remat(of_moments)(x, kept)

    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        is_valid: Bool[Array, "batch tokens"] | None,
        branch_scales: Float[Array, "batch 2"] | None = None,
    ) -> Float[Array, "batch tokens width"]:
        return self.in_stack(x, None, None, is_valid, branch_scales)[0]

    def in_stack(
        self,
        x: Float[Array, "batch tokens width"],
        stack: Array | None,
        layer: Int[Array, ""] | None,
        is_valid: Bool[Array, "batch tokens"] | None,
        branch_scales: Float[Array, "batch 2"] | None,
    ) -> tuple[Float[Array, "batch tokens width"], Array | None]:
        """Computes the block, and returns the stack with its queries, keys and values.

        Args:
            x: Tokens.
            stack: Stack of all layers, from `Operations.qkv_stack`; None: there is none.
            layer: The block's number.
            is_valid: True for tokens that may be attended to; None: all.
            branch_scales: Factors of what attention and MLP add to each example; None: 1.
        """
        x = self.operations.constrain(x)
        qkv = self._after_norm(self._qkv, self.attention_norm, x)
        with jax.named_scope(scopes.ATTENTION):
            if stack is None or layer is None:
                attended = self.operations.attention(qkv, is_valid, self.num_heads)
            else:
                attended, stack = self.operations.attention_in_stack(
                    packed(qkv), stack, layer, is_valid, self.num_heads
                )
        x = self._sum(x, _scaled(self.attention_out(attended), branch_scales, 0))
        with jax.named_scope(scopes.MLP):
            hidden = self._after_norm(self.mlp_in, self.mlp_norm, x)
            branch = _remat(lambda hidden: self.mlp_out(self._activate(hidden)))(hidden)
            x = self._sum(x, _scaled(branch, branch_scales, 1))
        return self.operations.constrain(x), stack

    def _sum(self, x: Array, branch: Array) -> Array:
        if not self.operations.forms.sums_rows:
            return x + branch
        rows = x.reshape(-1, x.shape[-1]) + branch.reshape(-1, x.shape[-1])
        return rows.reshape(x.shape)

    def _activate(self, x: Array) -> Array:
        forms = self.operations.forms
        if not forms.keeps_gelu_input:
            return _GELU[self.activation](x)
        is_plain = self.activation == "gelu_tanh" and not forms.has_gelu_epilogue
        return gelu_of_kept_input(x, gelu_by_sigmoid if is_plain else _GELU[self.activation])


def _scaled(branch: Array, scales: Float[Array, "batch 2"] | None, number: int) -> Array:
    """Returns what a branch of a block adds to each example, times the example's factor."""
    return branch if scales is None else branch * scales[:, number, None, None].astype(branch.dtype)


def _remat(function: Callable) -> Callable:
    """Returns a function of which only the inputs are kept for the backward pass.

    A matrix product at its end is not computed again, as no gradient needs its result.
    """
    # A new function, as methods of modules have no hash. The loop over blocks keeps forward and
    # backward apart, so common subexpressions need no barrier.
    return jax.checkpoint(lambda *inputs: function(*inputs), prevent_cse=False)


class Transformer(eqx.Module):
    """A stack of equal blocks and a final norm.

    Scanned, so that compile time does not grow with depth, unless layers are to be unrolled.
    """

    blocks: Block
    norm: LayerNorm
    remat: bool = eqx.field(static=True)
    unroll: int = eqx.field(static=True)

    def __init__(
        self,
        stack: TransformerConfig,
        config: ModelConfig,
        *,
        key: Key[Array, ""],
        operations: Operations,
    ):
        """Draws initial values.

        Args:
            stack: Sizes of this stack.
            config: The whole model's settings: dtypes, activation, remat.
            key: Decides every initial value.
            operations: Computes attention.
        """
        keys = jax.random.split(key, stack.num_layers)
        self.blocks = eqx.filter_vmap(
            lambda key: Block(stack, config, key=key, operations=operations)
        )(keys)
        self.norm = LayerNorm(
            stack.width, epsilon=config.norm_epsilon, dtype=config.parameter_dtype
        )
        self.remat = config.remat
        self.unroll = config.unroll or 1
        if config.unroll is None and operations.forms.unrolls_layers and not config.remat:
            self.unroll = stack.num_layers

    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        is_valid: Bool[Array, "batch tokens"] | None,
        *,
        final_norm: bool = True,
        branch_scales: Float[Array, "layers batch 2"] | None = None,
    ) -> Float[Array, "batch tokens width"]:
        """Encodes tokens; where `is_valid` is False they change no other token's output.

        Args:
            x: Embedded tokens in the compute dtype; the output has it too.
            is_valid: True for tokens that may be attended to; None: all.
            final_norm: False leaves the last block's output as it is.
            branch_scales: Factors of what attention and MLP of each block add to each example, see
                `draw_branch_scales`; None: 1.
        """

        operations, num_layers = self.blocks.operations, self.blocks.mlp_in.kernel.shape[0]
        # With remat blocks keep no queries, keys and values.
        stack = numbers = None
        if not self.remat:
            stack = operations.qkv_stack(x, num_layers, self.blocks.num_heads)
        blocks, slots = operations.with_slots(self._layers())
        if stack is not None or slots is not None:
            numbers = jnp.arange(num_layers, dtype=jnp.int32)

        def apply(carry, layer):
            (x, stack, slots), (block, scales, number) = carry, layer
            block, slots = put(block, slots, number)
            x, stack = block.in_stack(x, stack, number, is_valid, scales)
            return (x, stack, slots), None

        apply = _remat(apply) if self.remat else apply
        layers = (blocks, branch_scales, numbers)
        (x, stack, slots), _ = jax.lax.scan(apply, (x, stack, slots), layers, unroll=self.unroll)
        x = operations.keep_slots(operations.keep_stack(x, stack), slots)
        return self.norm(x) if final_norm else x

    def _layers(self) -> Block:
        """Returns the blocks as the loop takes them.

        All of them are folded at once: folded one by one, their gradients would be joined by
        kernels that take minutes to compile.
        """
        if not self.blocks.operations.forms.folds_norms:
            return self.blocks
        with jax.named_scope(scopes.NORM):
            return jax.vmap(Block.folded)(self.blocks)

    def all_layers(
        self,
        x: Float[Array, "batch tokens width"],
        is_valid: Bool[Array, "batch tokens"] | None,
        *,
        final_norm: bool = True,
    ) -> Float[Array, "layers batch tokens width"]:
        """Encodes tokens; returns them after each block, after the last one with the final norm.

        Without `final_norm` the last ones too are as their block leaves them.
        """

        def apply(x: Array, block: Block) -> tuple[Array, Array]:
            x = block(x, is_valid)
            return x, x

        x, layers = jax.lax.scan(apply, x, self._layers())
        return layers.at[-1].set(self.norm(x)) if final_norm else layers

    def last_qkv(
        self, x: Float[Array, "batch tokens width"], is_valid: Bool[Array, "batch tokens"] | None
    ) -> Float[Array, "batch tokens 3 width"]:
        """Computes the queries, keys and values of the last block."""
        earlier, last = (
            jax.tree.map(lambda leaf, of=of: leaf[of], self._layers()) for of in (slice(-1), -1)
        )
        x, _ = jax.lax.scan(lambda x, block: (block(x, is_valid), None), x, earlier)
        return packed(last.project_qkv(x))


def draw_branch_scales(
    keys: Key[Array, " batch"], num_layers: int, rate: float
) -> Float[Array, "layers batch 2"]:
    """Draws the factors of drop path (stochastic depth, Huang et al. 2016).

    A branch is dropped with a probability that grows in a line from 0 in the first block to `rate`
    in the last; what is kept is scaled up, so that the mean stays.

    Args:
        keys: One for each example.
        num_layers: Blocks.
        rate: Probability in the last block.
    """
    kept = 1 - rate * np.arange(num_layers, dtype=np.float32) / max(1, num_layers - 1)
    kept = jnp.asarray(kept)[:, None, None]
    draws = jax.vmap(lambda key: jax.random.uniform(key, (num_layers, 2)), out_axes=1)(keys)
    return jnp.where(draws < kept, 1 / kept, jnp.zeros((), kept.dtype))
