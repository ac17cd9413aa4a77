"""Meshes of devices, and the operations that run on them."""
