"""A run's directory and what it writes: checkpoints, metrics, logs."""
