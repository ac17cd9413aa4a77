"""Makes JAX strict for the whole suite, on eight simulated devices."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling is most of the suite's time. Programs that tests start find the cache through the
# environment.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path.home() / ".cache" / "m3ae-tpu" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
from absl import flags

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

flags.FLAGS.mark_as_parsed()


def pytest_collection_modifyitems(items):
    """Puts the longest file first: processes that share the suite then end at about the same time."""
    items.sort(key=lambda item: item.path.name != "test_pretrain.py")
