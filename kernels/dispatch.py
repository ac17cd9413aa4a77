"""Mechanisms of the choice between implementations that the operations share."""

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import jax
from jax._src import config  # For the interpret mode, which has no public accessor.
from jax.experimental.pallas import tpu as pltpu


def device_kind_of(x: jax.Array) -> str | None:
    """Returns the kind of the devices that a program is traced for, as far as a mesh says it.

    The mesh is the context's (inside `jax.shard_map`, `jax.set_mesh` or
    `jax.sharding.use_abstract_mesh`), or else that of the `NamedSharding` of a traced argument,
    which values computed from it inherit. A `SingleDeviceSharding` is unknown until lowering: None.
    """
    for mesh in (jax.sharding.get_abstract_mesh(), jax.typeof(x).sharding.mesh):
        if (device := mesh.abstract_device) is not None:
            return device.device_kind
    return None


def local_tpu_kind() -> str | None:
    """Returns the kind of this machine's TPUs, or None if JAX's default backend is another one."""
    return jax.devices()[0].device_kind if jax.default_backend() == "tpu" else None


@contextlib.contextmanager
def interpret_mode(*, is_allowed: bool) -> Iterator[None]:
    """Compiles the kernels called inside for a TPU, unless interpret mode is on and allowed.

    `jax.lax.platform_dependent` traces the branches of all platforms. An interpreted kernel calls
    back to the host, which a branch must not do, so that the branch for TPUs turns the mode off.
    """
    if is_allowed:
        yield
        return
    # None is the value of the mode when it is off.
    with pltpu.force_tpu_interpret_mode(cast(Any, None)):
        yield


def is_interpreted() -> bool:
    """Returns whether kernels that are traced now will run in Pallas' interpret mode."""
    return config.pallas_tpu_interpret_mode_context_manager.value is not None
