"""From shards of records to batches: reading, decoding, tokenising, mixing. Knows nothing of the
model.
"""
