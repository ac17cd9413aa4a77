"""The quick start's model, trained on the starter set for up to an hour on two cores.

    python -m pipelines.pretrain --config=starter_long --workdir=runs/starter_long
    python -m pipelines.evaluate runs/starter_long
    python -m pipelines.report runs/starter_long

Data: the starter set, as for the quick start.
Needs: two CPU cores for 30 to 50 minutes, an estimate from the time of a step.
Score to expect: 0.53 in the linear probe of held-out images; 0.43 with the untrained encoder, 0.42
with raw pixels. Measured on a GPU, with `initial_words="random"`.
"""

import dataclasses

from m3ae_tpu.config import CheckpointConfig, LoggingConfig, ProbeConfig
from m3ae_tpu.configs import quickstart

CONFIG = dataclasses.replace(
    quickstart.CONFIG,
    num_steps=7_000,
    checkpoint=CheckpointConfig(every_steps=500),
    logging=LoggingConfig(every_steps=50),
    probe=ProbeConfig(every_steps=1_000),
)
