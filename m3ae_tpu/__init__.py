"""Multimodal masked autoencoders (Geng et al. 2022, arXiv 2205.14204) for TPUs, in JAX."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from m3ae_tpu.pretrained.loading import load

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str):
    # Programs that only read flags must not wait for JAX.
    if name == "load":
        from m3ae_tpu.pretrained.loading import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
