"""Compiles for NVIDIA GPUs that are not here: XLA needs a description of the device, no driver.

It needs JAX's CUDA plugin and NVIDIA's assembler, which the extra `compile-gpu` names: no GPU, and
none of CUDA's libraries of kernels.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from m3ae_tpu.errors import UserError
from m3ae_tpu.kernels.chips import CHIPS
from m3ae_tpu.measure.tpu_schedule import not_kept
from m3ae_tpu.parallel.mesh import make_mesh

PACKAGES = ("jax_cuda13_plugin", "jax_plugins.xla_cuda13", "nvidia.cu13")
"""Modules that the extra `compile-gpu` installs."""

OPTIONS = {"xla_gpu_enable_triton_gemm": False}
"""Products become calls of cuBLASLt. XLA chooses Triton's tiles by timing them on the device:
without one every product would get a placeholder.
"""

_SHARED = """
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 device_address_bits: 64 device_vendor: "NVIDIA Corporation"
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.28.1"
"""
_HOPPER = """
  shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  core_count: 132 fpus_per_core: 128 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  platform_version: "Compute Capability 9.0a"
"""
_DESCRIPTIONS = {
    "h100": _HOPPER + "memory_bandwidth: 3352320000000 device_memory_size: 84942979072",
    "h200": _HOPPER + "memory_bandwidth: 4800000000000 device_memory_size: 151397597184",
    "a100": """
      shared_memory_per_core: 167936 shared_memory_per_block_optin: 166912
      core_count: 108 fpus_per_core: 64 l2_cache_size: 41943040 clock_rate_ghz: 1.41
      cuda_compute_capability { major: 8 feature_extension: NONE }
      platform_version: "Compute Capability 8.0"
      memory_bandwidth: 2039040000000 device_memory_size: 85100068864
    """,
}
"""Facts of the SXM modules, as XLA's `GpuTargetConfigProto` names them; XLA keeps the same in
`xla/backends/gpu/target_config/specs`.
"""


def require_compiler() -> None:
    """Checks that the compiler is installed.

    Raises:
        UserError: it is not.
    """
    missing = [name for name in PACKAGES if not _is_installed(name)]
    if missing:
        raise UserError(
            f"The GPU compiler ({', '.join(missing)}) is not installed. "
            "Run `make compile-gpu`, or pip install 'm3ae-tpu[compile-gpu]'."
        )


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # Its parent is missing.
        return False


@functools.cache
def described_gpus(chip: str, num_devices: int = 1) -> tuple[Any, ...]:
    """Returns the GPUs of one host: programs can be compiled for them, none runs on them.

    Args:
        chip: One of `kernels.chips.GPUS`.
        num_devices: GPUs, joined by NVLink.
    """
    kind = CHIPS[chip].device_kind
    description = (
        f'gpu_device_info {{ {_SHARED} {_DESCRIPTIONS[chip]} name: "{kind}" }} '
        f'platform_name: "CUDA" device_description_str: "{kind}" '
        "dnn_version_info { major: 9 minor: 28 patch: 1 } runtime_version { major: 13 }"
    )
    described = topologies.get_topology_desc(
        platform="cuda", target_config=description, topology=f"1x1x{num_devices}"
    )
    return tuple(described.devices)


def described_gpu_mesh(chip: str, num_devices: int = 1) -> Mesh:
    """Returns a mesh of described GPUs, as a run has it on real ones."""
    return make_mesh(devices=described_gpus(chip, num_devices))


def compile_for(
    chip: str, function: Callable, *shapes: jax.ShapeDtypeStruct
) -> jax.stages.Compiled:
    """Compiles a function of arrays for one GPU.

    Args:
        chip: One of `kernels.chips.GPUS`.
        function: Jittable.
        shapes: Its arguments.
    """
    # A sharding over a mesh tells a traced function the chip, one of a single device does not.
    mesh = Mesh(np.array(described_gpus(chip)), ("device",), axis_types=(AxisType.Auto,))
    place = NamedSharding(mesh, PartitionSpec())
    arguments = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place) for x in shapes]
    with not_kept():
        lowered = jax.jit(function, out_shardings=place).lower(*arguments)
        return lowered.compile(compiler_options=OPTIONS)
