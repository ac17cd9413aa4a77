"""Rehearsals: a run compiled for TPUs that are not there, and what it would need on them."""
