"""Measurement: costs of kernels, steps and data, scheduled, timed or compared."""
