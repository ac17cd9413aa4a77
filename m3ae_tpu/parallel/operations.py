"""The operations that the model computes through: the one place that chooses kernels for a mesh."""

import dataclasses
import functools
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from m3ae_tpu.kernels.attention import attention
from m3ae_tpu.kernels.attention import reference as attention_reference
from m3ae_tpu.kernels.cross_entropy import CrossEntropy, cross_entropy
from m3ae_tpu.kernels.cross_entropy import reference as cross_entropy_reference
from m3ae_tpu.parallel.mesh import DATA_AXIS

_ROWS, _WHOLE = PartitionSpec(DATA_AXIS), PartitionSpec()


@dataclasses.dataclass(frozen=True)
class Operations:
    """Attention, cross-entropy and the sharding of activations, as the devices of a mesh run them.

    Equal meshes give equal operations, so a model that carries them compiles once for a mesh.
    """

    mesh: Mesh | None = None
    """The devices, each with its own rows of a batch; None: the references, on one device."""

    def attention(
        self,
        qkv: Float[Array, "batch tokens 3 width"],
        is_valid: Bool[Array, "batch tokens"] | None,
        num_heads: int,
    ) -> Float[Array, "batch tokens width"]:
        """Computes multi-head attention; see `kernels.attention.attention`."""
        if self.mesh is None or self._device.platform == "cpu":
            return attention_reference.attention(qkv, is_valid, num_heads)
        kernel = functools.partial(
            attention, num_heads=num_heads, device_kind=self._device.device_kind
        )
        return self._map(kernel, in_specs=(_ROWS, _ROWS))(qkv, is_valid)

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
        if self.mesh.size > 1:
            # Cast outside of the map: devices then add up this kernel's gradient in the compute
            # dtype, as those of all other kernels.
            kernel = kernel.astype(x.dtype)
        mapped = self._map(cross_entropy, in_specs=(_ROWS, _WHOLE, _WHOLE, _ROWS, _ROWS))
        return mapped(x, kernel, bias, ids, is_counted)

    def constrain(
        self, x: Float[Array, "batch tokens width"]
    ) -> Float[Array, "batch tokens width"]:
        """Pins the batch axis of activations to the mesh: every device computes its own rows."""
        if self.mesh is None or self.mesh.size == 1:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, _ROWS))

    @property
    def _device(self) -> Any:
        assert self.mesh is not None
        return self.mesh.devices.flat[0]

    def _map(self, function, *, in_specs):
        """Runs a function of rows on every device's own ones."""
        if self.mesh is None or self.mesh.size == 1:
            return function
        # check_vma: kernels do not say over which axes their results vary.
        return jax.shard_map(
            function, mesh=self.mesh, in_specs=in_specs, out_specs=_ROWS, check_vma=False
        )
