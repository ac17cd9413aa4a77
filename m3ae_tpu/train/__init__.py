"""Pre-training: objective, optimizer, step, loop, checkpoints, metrics."""
