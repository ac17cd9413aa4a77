"""Probes of frozen features: classifiers that show what a trained encoder has learned."""
