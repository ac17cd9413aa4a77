"""Programs: each arranges parts of the library and is run as `python -m pipelines.NAME`."""
