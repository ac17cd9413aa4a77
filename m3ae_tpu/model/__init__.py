"""The network as pure functions of arrays: patches, positions, masking, transformer, losses."""
