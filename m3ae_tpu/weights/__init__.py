"""Weights of other libraries read, and ours written for them."""
