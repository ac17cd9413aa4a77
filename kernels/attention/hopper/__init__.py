"""Attention on Hopper GPUs: the Pallas (Mosaic GPU) kernels and the differentiable operation around
them.
"""
