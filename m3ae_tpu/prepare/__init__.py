"""Preparation: collections of images and texts become shuffled, checked sets of shards."""
