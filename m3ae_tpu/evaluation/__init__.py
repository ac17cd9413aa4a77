"""Measurements of a trained run: its features, and its reconstruction of held-out examples."""
