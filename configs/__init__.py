"""Named runs, one a file: plain values under a docstring that says what they cost and give."""

if __name__ == "configs":  # A second copy of every module would come with this name.
    raise ImportError("write: from m3ae_tpu.configs import ...")
