"""Training: objectives, optimizer, step and loop."""
