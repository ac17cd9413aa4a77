"""The operations that the model computes through: the one place that chooses kernels for a mesh."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from m3ae_tpu.config import GradientSums
from m3ae_tpu.kernels.attention import attention
from m3ae_tpu.kernels.attention import reference as attention_reference
from m3ae_tpu.kernels.cross_entropy import CrossEntropy, cross_entropy
from m3ae_tpu.kernels.cross_entropy import reference as cross_entropy_reference
from m3ae_tpu.parallel.mesh import BATCH, TENSOR

_ROWS = PartitionSpec(BATCH)
_QKV_HEADS = PartitionSpec(BATCH, None, None, TENSOR)
_HEADS = PartitionSpec(BATCH, None, TENSOR)


@dataclasses.dataclass(frozen=True)
class Operations:
    """Attention, cross-entropy, products and the sharding of activations, as a mesh computes them.

    Equal meshes give equal operations, so a model that carries them compiles once for a mesh.
    """

    mesh: Mesh | None = None
    """The devices, each with its own rows of a batch; None: the references, on one device."""
    gradient_sums: GradientSums = "compute_dtype"
    """Dtype in which devices add up the gradients of matrices, see `MeshConfig`."""

    def attention(
        self,
        qkv: Float[Array, "batch tokens 3 width"],
        is_valid: Bool[Array, "batch tokens"] | None,
        num_heads: int,
    ) -> Float[Array, "batch tokens width"]:
        """Computes multi-head attention; see `kernels.attention.attention`."""
        if self.mesh is None or self._device.platform == "cpu":
            function = attention_reference.attention
        else:
            function = functools.partial(attention, device_kind=self._device.device_kind)
        own_heads = functools.partial(function, num_heads=num_heads // self._num_tensor_shards)
        mapped = self._map(own_heads, in_specs=(_QKV_HEADS, _ROWS), out_specs=_HEADS)
        return mapped(qkv, is_valid)

    def cross_entropy(
        self,
        x: Float[Array, "batch tokens width"],
        kernel: Float[Array, "width vocab"],
        bias: Float[Array, " vocab"],
        ids: Int[Array, "batch tokens"],
        is_counted: Bool[Array, "batch tokens"],
    ) -> CrossEntropy:
        """Computes the text head and its loss in one; see `kernels.cross_entropy.cross_entropy`."""
        if self.mesh is None:
            return cross_entropy_reference.cross_entropy(x, kernel, bias, ids, is_counted)
        if self.mesh.size > 1 and self.gradient_sums == "compute_dtype":
            # Cast outside of the map: devices then add up this kernel's gradient in the compute
            # dtype, as those of all other kernels.
            kernel = kernel.astype(x.dtype)
        vocabulary_axis = TENSOR if self._num_tensor_shards > 1 else None
        mapped = self._map(
            functools.partial(cross_entropy, vocabulary_axis=vocabulary_axis),
            in_specs=(_ROWS, PartitionSpec(None, TENSOR), PartitionSpec(TENSOR), _ROWS, _ROWS),
            out_specs=_ROWS,
        )
        return mapped(x, kernel, bias, ids, is_counted)

    def linear(
        self,
        x: Float[Array, "batch tokens inputs"],
        kernel: Float[Array, "inputs *outer outputs"],
        bias: Float[Array, "*outer outputs"],
    ) -> Float[Array, "batch tokens *outer outputs"]:
        """Computes x @ kernel + bias in the dtype of x."""
        # A product of two matrices. On CPUs a gradient that contracts batch and tokens separately
        # takes 1.5 times as long; on TPUs an output axis of 3 would be padded to a tile.
        rows, shape = x.reshape(-1, x.shape[-1]), bias.shape
        shards = self._num_tensor_shards if len(shape) > 1 else 1
        if shards > 1:  # What a device holds must be contiguous where axes become one.
            kernel, bias = (_shards_first(array, shards) for array in (kernel, bias))
        matrix, vector = kernel.reshape(x.shape[-1], -1), bias.reshape(-1)
        product = _product if self.gradient_sums == "compute_dtype" else _product_with_wide_sums
        y = product(rows, matrix, vector).reshape(*x.shape[:2], *bias.shape)
        return y.swapaxes(2, 3).reshape(*x.shape[:2], *shape) if shards > 1 else y

    def constrain[Tree](self, rows: Tree) -> Tree:
        """Pins the first axis of arrays to the mesh: every device computes its own rows.

        Without it the compiler may move examples to the devices that hold a piece of a matrix.
        """
        if self.mesh is None or self.mesh.size == 1:
            return rows
        return jax.lax.with_sharding_constraint(rows, NamedSharding(self.mesh, _ROWS))

    @property
    def _device(self) -> Any:
        assert self.mesh is not None
        return self.mesh.devices.flat[0]

    @property
    def _num_tensor_shards(self) -> int:
        return 1 if self.mesh is None else self.mesh.shape[TENSOR]

    def _map(self, function, *, in_specs, out_specs):
        """Runs a function on every device's own rows and heads, or columns of the vocabulary."""
        if self.mesh is None or self.mesh.size == 1:
            return function
        # check_vma: kernels do not say over which axes their results vary.
        return jax.shard_map(
            function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )


def _shards_first(array: Array, shards: int) -> Array:
    """Returns [..., outer, channels] as [..., shards, outer, channels / shards]."""
    *before, outer, channels = array.shape
    return array.reshape(*before, outer, shards, channels // shards).swapaxes(-3, -2)


def _product(x: Array, kernel: Array, bias: Array) -> Array:
    return x @ kernel.astype(x.dtype) + bias.astype(x.dtype)[None]


@jax.custom_vjp
def _product_with_wide_sums(x: Array, kernel: Array, bias: Array) -> Array:
    """Computes `_product`; the gradients of kernel and bias are summed in their own dtype."""
    return _product(x, kernel, bias)


def _product_forward(x: Array, kernel: Array, bias: Array):
    return _product(x, kernel, bias), (x, kernel, bias)


def _product_backward(saved, dy: Array) -> tuple[Array, Array, Array]:
    x, kernel, bias = saved
    dkernel = jnp.dot(x.T, dy, preferred_element_type=kernel.dtype)
    return dy @ kernel.astype(x.dtype).T, dkernel, dy.astype(bias.dtype).sum(axis=0)


_product_with_wide_sums.defvjp(_product_forward, _product_backward)
