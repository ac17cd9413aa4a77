"""The quick start's model, trained on the starter set for up to an hour on two cores.

    python -m pipelines.pretrain --config=starter_long --workdir=runs/starter_long
    --optimizer.accumulation_steps=4 python -m pipelines.evaluate runs/starter_long python -m
    pipelines.report runs/starter_long

Score to expect: 0.53 in the linear probe of held-out images; the same encoder untrained 0.43, raw
pixels 0.42. Needs: 30 to 50 minutes on two cores, an estimate from the time of a step; the score is
of runs on a GPU. Data: the starter set, as for the quick start; in parts of a quarter batch only
for the caches of CPUs.
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
