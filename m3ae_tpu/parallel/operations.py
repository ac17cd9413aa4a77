"""The operations that the model computes through: the one place that chooses kernels for a mesh."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from m3ae_tpu.config import GradientSums
from m3ae_tpu.kernels.attention import Parts, attention, packed
from m3ae_tpu.kernels.attention import reference as attention_reference
from m3ae_tpu.kernels.attention.tpu import stack as attention_stack
from m3ae_tpu.kernels.cross_entropy import CrossEntropy
from m3ae_tpu.kernels.cross_entropy import reference as cross_entropy_reference
from m3ae_tpu.parallel import rules, slots, vocabulary
from m3ae_tpu.parallel.forms import Forms, forms_of
from m3ae_tpu.parallel.mesh import AXES, BATCH, DATA, FSDP, TENSOR
from m3ae_tpu.parallel.products import Layout, add_bias, product, product_of_gathered

_ROWS = PartitionSpec(BATCH)
_QKV_HEADS = PartitionSpec(BATCH, None, None, TENSOR)
_HEADS = PartitionSpec(BATCH, None, TENSOR)
_SUBLANES = 8
_STACK = PartitionSpec(None, BATCH, None, TENSOR)


@dataclasses.dataclass(frozen=True)
class Operations:
    """Attention, cross-entropy, products and the sharding of activations, as a mesh computes them.

    Equal meshes give equal operations, so a model that carries them compiles once for a mesh.
    """

    mesh: Mesh | None = None
    """The devices, each with its own rows of a batch; None: the references, on one device."""
    gradient_sums: GradientSums = "compute_dtype"
    """Dtype in which devices add up gradients, see `MeshConfig`."""
    without: tuple[str, ...] = ()
    """Forms of the devices that are left out, by name: benchmarks compare."""

    def attention(
        self,
        qkv: Float[Array, "batch tokens 3 width"] | Parts,
        is_valid: Bool[Array, "batch tokens"] | None,
        num_heads: int,
    ) -> Float[Array, "batch tokens width"]:
        """Computes multi-head attention; see `kernels.attention.attention`."""
        is_on_cpu = self.mesh is None or self._device.platform == "cpu"
        if is_on_cpu and self._size(TENSOR) == 1:
            # The compiler splits it by itself, for any number of rows.
            return attention_reference.attention(packed(qkv), is_valid, num_heads)
        function = attention_reference.attention
        if not is_on_cpu:
            function = functools.partial(attention, device_kind=self._device.device_kind)
        own_heads = functools.partial(function, num_heads=num_heads // self._size(TENSOR))
        qkv_spec = (_HEADS,) * 3 if isinstance(qkv, tuple) else _QKV_HEADS
        mapped = self._map(own_heads, in_specs=(qkv_spec, _ROWS), out_specs=_HEADS)
        return mapped(qkv, is_valid)

    def qkv_stack(
        self, x: Float[Array, "batch tokens width"], num_layers: int, num_heads: int
    ) -> Array | None:
        """Returns an empty stack for `attention_in_stack` of so many layers, or None where the
        devices take no such stack.
        """
        batch, tokens, width = x.shape
        own = (
            batch // (self._size(DATA) * self._size(FSDP)),
            tokens,
            3 * width // self._size(TENSOR),
        )
        heads = num_heads // self._size(TENSOR)
        if not self.forms.keeps_qkv_in_stack or not attention_stack.is_supported(
            own, x.dtype, heads, self._device.device_kind
        ):
            return None
        return self._map(
            lambda: jax.lax.empty((num_layers, *own), x.dtype), in_specs=(), out_specs=_STACK
        )()

    def attention_in_stack(
        self,
        qkv: Float[Array, "batch tokens 3 width"],
        stack: Array,
        layer: Int[Array, ""],
        is_valid: Bool[Array, "batch tokens"] | None,
        num_heads: int,
    ) -> tuple[Float[Array, "batch tokens width"], Array]:
        """Computes `attention`; what its gradient needs is kept in a stack of all layers.

        Returns the stack too. After the last layer it goes to `keep_stack`.
        """

        def own_heads(qkv, stack, layer, is_valid):
            return attention_stack.attention_in_stack(
                qkv.reshape(*qkv.shape[:2], -1),
                stack,
                layer,
                is_valid,
                num_heads // self._size(TENSOR),
                device_kind=self._device.device_kind,
            )

        in_specs = (_QKV_HEADS, _STACK, PartitionSpec(), _ROWS)
        mapped = self._map(own_heads, in_specs=in_specs, out_specs=(_HEADS, _STACK))
        return mapped(qkv, stack, layer, is_valid)

    def keep_stack(self, x: Array, stack: Array | None) -> Array:
        """Returns x, the result of layers that filled a stack; see `attention_in_stack`."""
        return x if stack is None else attention_stack.keep_stack(x, stack)

    def with_slots(self, layers: PyTree) -> tuple[PyTree, PyTree | None]:
        """Returns layers as a scan takes them, and slots for their gradients; see `parallel.slots`.

        None: the devices take the scan's own stacks. After the scan the slots go to `keep_slots`.
        """
        if not self.forms.has_gradient_slots:
            return layers, None
        return jax.lax.stop_gradient(layers), slots.empty_slots(layers, self._empty)

    def keep_slots(self, x: Array, filled: PyTree | None) -> Array:
        """Returns x, the result of layers whose gradients fill slots; see `with_slots`."""
        return x if filled is None else slots.filled_slots(x, filled, self._empty)

    def _empty(self, arrays: PyTree) -> PyTree:
        """Returns arrays of the same shapes and dtypes on every device; their values are any."""
        return self._map(
            lambda: jax.tree.map(lambda array: jax.lax.empty(array.shape, array.dtype), arrays),
            in_specs=(),
            out_specs=PartitionSpec(),
        )()

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
        lies = rules.spec("text.head.kernel", kernel.shape, kernel.dtype.itemsize, self.mesh)
        own_rows = functools.partial(
            vocabulary.cross_entropy,
            gathered_axis=rules.axis_of(FSDP, lies) if self._size(FSDP) > 1 else None,
            vocabulary_axis=TENSOR if self._size(TENSOR) > 1 else None,
        )
        in_specs = (_ROWS, lies, PartitionSpec(TENSOR), _ROWS, _ROWS)
        mapped = self._map(own_rows, in_specs=in_specs, out_specs=_ROWS)
        return mapped(x, kernel, bias, ids, is_counted)

    def lookup(
        self, table: Float[Array, "vocab width"], ids: Int[Array, "batch tokens"], dtype: DTypeLike
    ) -> Float[Array, "batch tokens width"]:
        """Computes table[ids]; where the vocabulary is cut, words' vectors travel, not the table.

        They do so in the dtype, in which the result is.
        """
        if self.mesh is None or not self._cuts_matrices:
            return table[ids].astype(dtype)
        lies = rules.spec("text.embedding.table", table.shape, table.dtype.itemsize, self.mesh)
        own_rows = functools.partial(
            vocabulary.lookup,
            dtype=dtype,
            vocabulary_axes=tuple(
                axis
                for axis in (TENSOR, FSDP)
                if self._size(axis) > 1 and rules.axis_of(axis, lies) == 0
            ),
            gathers_width=self._size(FSDP) > 1 and rules.axis_of(FSDP, lies) == 1,
        )
        mapped = self._map(own_rows, in_specs=(lies, _ROWS), out_specs=_ROWS)
        return mapped(table, ids)

    def spread(
        self, parameter: Array, over_rows: Callable[[Array], Array], dtype: DTypeLike
    ) -> Array:
        """Casts a parameter and spreads it over the rows of a batch.

        With float32 sums the cast comes last: its gradient, the sum over rows, is then added up in
        the parameter's dtype.
        """
        if self.gradient_sums == "float32":
            return over_rows(parameter).astype(dtype)
        return over_rows(parameter.astype(dtype))

    def linear(
        self,
        x: Float[Array, "batch tokens inputs"],
        kernel: Float[Array, "inputs *outer outputs"],
        bias: Float[Array, "*outer outputs"],
        name: str,
    ) -> Float[Array, "batch tokens *outer outputs"]:
        """Computes x @ kernel + bias in the dtype of x; `name` is the kernel's in `rules`."""
        layout, shape = self._layout(name, kernel), bias.shape
        rows = x if self.forms.keeps_token_axis else x.reshape(-1, x.shape[-1])
        # The kernel is a matrix: on TPUs an output axis of 3 would be padded to a tile.
        shards = self._size(TENSOR) if len(shape) > 1 else 1
        if shards > 1:  # What a device holds must be contiguous where axes become one.
            kernel, bias = (_shards_first(array, shards) for array in (kernel, bias))
        matrix, vector = kernel.reshape(x.shape[-1], -1), bias.reshape(-1)
        has_wide_sums = self.gradient_sums == "float32"
        if has_wide_sums or layout is not None:
            y: Any = product_of_gathered(rows, matrix, vector, layout, has_wide_sums)
        elif name.removesuffix(".kernel") in self.forms.bias_products:
            y = add_bias(rows @ matrix.astype(x.dtype), vector, self.sum_of_rows)
        else:
            y = product(rows, matrix, vector)
        y = y.reshape(*x.shape[:2], *bias.shape)
        if shards > 1:
            y = y.swapaxes(2, 3).reshape(*x.shape[:2], *shape)
        if layout is None:
            return y
        outputs = PartitionSpec(BATCH, *[None] * len(shape), layout.used.spec[1])
        return jax.lax.with_sharding_constraint(y, NamedSharding(layout.used.mesh, outputs))

    def sum_of_rows(self, x: Float[Array, "batch tokens width"]) -> Float[Array, " width"]:
        """Computes the sum over batch and tokens as a matrix product, float32 or wider on each
        device.
        """
        summed = [axis for axis in BATCH if self._size(axis) > 1]

        def of_own_rows(x: Array) -> Array:
            # Of one row of ones the compiler makes a sum, which reads memory at half of its speed.
            ones = jnp.ones((_SUBLANES, *x.shape[:-1]), x.dtype)
            wide = np.promote_types(x.dtype, np.float32)
            own = jax.lax.dot_general(
                ones, x, (((1, 2), (0, 1)), ((), ())), preferred_element_type=wide
            )[0].astype(x.dtype)
            return jax.lax.psum(own, summed) if summed else own

        return self._map(of_own_rows, in_specs=(_ROWS,), out_specs=PartitionSpec())(x)

    def constrain[Tree](self, rows: Tree) -> Tree:
        """Pins the first axis of arrays to the mesh: every device computes its own rows.

        Without it the compiler may move examples to the devices that hold a piece of a matrix.
        """
        if self.mesh is None or self.mesh.size == 1:
            return rows
        return jax.lax.with_sharding_constraint(rows, NamedSharding(self.mesh, _ROWS))

    @property
    def forms(self) -> Forms:
        """The forms in which the mesh's devices compute; those of a CPU without a mesh."""
        if self.mesh is None:
            return Forms()
        forms = forms_of(self._device.platform).without(*self.without)
        if self.mesh.size > 1:  # Devices would add up each layer's small gradients by themselves.
            forms = forms.without("has_gradient_slots")
        if self._cuts_matrices:  # Devices would have to add up what a norm's bias gives.
            forms = forms.without("folds_norms", "has_three_products", "sums_rows")
        return forms

    @property
    def _device(self) -> Any:
        assert self.mesh is not None
        return self.mesh.devices.flat[0]

    def _layout(self, name: str, kernel: Array) -> "Layout | None":
        """Returns how a kernel lies on a mesh that cuts matrices, as a matrix; None elsewhere."""
        if self.mesh is None or not self._cuts_matrices:
            return None
        spec = rules.spec(name, kernel.shape, kernel.dtype.itemsize, self.mesh)
        cuts = [*spec, *[None] * (kernel.ndim - len(spec))]
        used = [TENSOR if rules.cuts(TENSOR, cut) else None for cut in cuts]
        # Outputs that FSDP cuts too are not contiguous where their axes are one.
        is_matrix = kernel.ndim == 2 or not rules.cuts(FSDP, cuts[-1])
        kept = [cuts[0], cuts[-1]] if is_matrix else [used[0], used[-1]]
        return Layout(
            NamedSharding(self.mesh, PartitionSpec(used[0], used[-1])),
            NamedSharding(self.mesh, PartitionSpec(*kept)),
        )

    def _size(self, axis: str) -> int:
        return 1 if self.mesh is None else self.mesh.shape[axis]

    @property
    def _cuts_matrices(self) -> bool:
        return self._size(FSDP) * self._size(TENSOR) > 1

    def _map(self, function: Callable, *, in_specs: tuple[Any, ...], out_specs: Any) -> Callable:
        """Runs a function on every device's own rows and heads, or columns of the vocabulary."""
        mesh = self.mesh
        if mesh is None or mesh.size == 1:
            return function
        return jax.shard_map(
            function,
            mesh=mesh,
            in_specs=jax.tree.map(lambda spec: _with_unit_axes(spec, mesh), in_specs),
            out_specs=jax.tree.map(lambda spec: _with_unit_axes(spec, mesh), out_specs),
            check_vma=False,  # Kernels do not say over which axes their results vary.
        )


def _with_unit_axes(spec: PartitionSpec, mesh: Mesh) -> PartitionSpec:
    """Returns a spec that names all mesh axes of size 1: gradients are not summed over them."""
    if not tuple(spec):  # Whole on every device.
        return spec
    unit = [axis for axis in AXES if mesh.shape[axis] == 1 and rules.axis_of(axis, spec) is None]
    first, *others = spec
    named = first if isinstance(first, tuple) else (first,) if first else ()
    return PartitionSpec((*named, *unit) or None, *others)


def _shards_first(array: Array, shards: int) -> Array:
    """Returns [..., outer, channels] as [..., shards, outer, channels / shards]."""
    *before, outer, channels = array.shape
    return array.reshape(*before, outer, shards, channels // shards).swapaxes(-3, -2)
