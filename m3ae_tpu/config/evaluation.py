"""Settings of what is scored while a run goes on."""

import dataclasses

from m3ae_tpu.errors import require


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """A k-NN probe of frozen features while the run goes on."""

    every_steps: int = 0
    """Steps between two probes; 0 for none."""
    train_shards: str = "starter/train-*"
    """Labelled shards that the probe learns from."""
    test_shards: str = ""
    """Labelled shards that it is scored on; empty: a fifth of `train_shards`, whole duplicate
    groups at a time.
    """
    max_examples: int = 4_000
    """Examples read from each; bounds the probe's time."""

    def __post_init__(self) -> None:
        require(
            self.every_steps >= 0,
            f"probe.every_steps = {self.every_steps} is negative. Set 0 for no probe.",
        )
        require(
            self.max_examples >= 50,
            f"probe.max_examples = {self.max_examples} is below 50. Set 4000.",
        )
