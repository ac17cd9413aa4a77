"""Settings of the scores that are computed during a run."""

import dataclasses

from m3ae_tpu.config.checks import require_within


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """A k-NN probe of frozen features during training."""

    every_steps: int = 0
    """Steps between two probes; 0 turns them off."""
    train_shards: str = "starter/train-*"
    """Labelled shards whose records are the neighbours."""
    test_shards: str = ""
    """Labelled shards whose records are classified; empty: a fifth of `train_shards`.
    Duplicates of an image are never on both sides of that split.
    """
    max_examples: int = 4_000
    """Examples read of each of the two; bounds the probe's time."""

    def __post_init__(self) -> None:
        require_within(self, "[0, inf)", "every_steps")
        require_within(self, "[50, inf)", "max_examples")
