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
# Small programs run once: they compile in half the time without most optimizations. `.ci/run` tests
# the network with all of them.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# The suite's processes share the cores: a program that is compiled in parts costs more in all.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_parallel_codegen_split_count=1"
)

import importlib.util

import hypothesis
import jax
import pytest
from absl import flags

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

flags.FLAGS.mark_as_parsed()

# No outcome depends on wall time: the machine may be busy.
hypothesis.settings.register_profile(
    "suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("suite")


COMPILERS = {
    "tpu_compiler": ("libtpu", "make compile-tpu"),
    "gpu_compiler": ("jax_cuda13_plugin", "make compile-gpu"),
}
"""Markers of tests that need a compiler: its module, and what installs it."""


@pytest.fixture(autouse=True)
def _optimizes_for_accelerators(request, monkeypatch):
    """Compiles for TPUs and GPUs as users do: what the compiler makes of it is under test."""
    markers = map(request.node.get_closest_marker, COMPILERS)
    if any(markers):
        former = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"]
        monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
        jax.config.update("jax_disable_most_optimizations", False)
        yield
        jax.config.update("jax_disable_most_optimizations", former == "1")
    else:
        yield


WITHOUT_COMPILER = "needs a compiler that is not installed: "


def pytest_collection_modifyitems(items):
    """Skips what needs a compiler that is missing, and puts the longest file first: processes that
    share the suite then end at about the same time.
    """
    for marker, (module, target) in COMPILERS.items():
        if importlib.util.find_spec(module) is None:
            for item in items:
                if item.get_closest_marker(marker):
                    item.add_marker(pytest.mark.skip(reason=WITHOUT_COMPILER + target))
    items.sort(key=lambda item: item.path.name != "test_pretrain.py")


def pytest_terminal_summary(terminalreporter):
    """Says how many tests were left out for want of a compiler, and how to run them."""
    skipped = terminalreporter.stats.get("skipped", [])
    for name, (_, target) in COMPILERS.items():
        reason = WITHOUT_COMPILER + target
        if number := sum(reason in str(report.longrepr) for report in skipped):
            terminalreporter.write_line(
                f"Left out: {number} tests that are marked {name}. "
                f"To run them, install the compiler: {target}"
            )
