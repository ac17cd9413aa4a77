"""Attention on TPUs: the Pallas kernels and the differentiable operation around them."""
