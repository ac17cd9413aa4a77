"""Search in features: nearest neighbours, and texts scored beside images."""
