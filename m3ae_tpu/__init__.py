"""Multimodal masked autoencoders (Geng et al. 2022, arXiv 2205.14204) for TPUs, in JAX."""

__version__ = "0.1.0"
