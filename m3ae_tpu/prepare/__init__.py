"""From collections as people have them to ArrayRecord shards: reading, cleaning, shuffling,
counting.
"""
