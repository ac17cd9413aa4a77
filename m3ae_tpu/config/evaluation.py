"""Settings of the scores that are computed during a run."""

import dataclasses

from m3ae_tpu.config.checks import require_field, require_within


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Labelled examples that a classifier is scored on; every one counts once."""

    shards: str = ""
    """Labelled shards of test examples; empty: none are scored."""
    split: tuple[float, float] = (0.0, 1.0)
    """Range of their records, as that of a source: to tune on a part of the training records."""
    every_steps: int = 0
    """Steps between two evaluations; 0: only after the last step."""

    def __post_init__(self) -> None:
        require_within(self, "[0, inf)", "every_steps")
        start, end = self.split
        require_field(self, "split", 0 <= start < end <= 1, "is not a range within [0, 1]")
