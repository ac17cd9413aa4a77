"""Fused operations for accelerators, each with a reference in plain `jax.numpy`."""

if __name__ == "kernels":  # Under this name, Python would load a second copy of every module.
    raise ImportError("write: from m3ae_tpu.kernels import ...")
