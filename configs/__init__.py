"""Named runs, one a file: plain values, under a docstring with their cost and expected score."""

if __name__ == "configs":  # This name would load a second copy of every module.
    raise ImportError("write: from m3ae_tpu.configs import ...")
