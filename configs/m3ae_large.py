"""The paper's ViT-L/16: `m3ae_base` with an encoder of 24 blocks of 1,024 channels.

    python -m pipelines.pretrain --config=m3ae_large --workdir=runs/m3ae_large

Needs: 64 TPU v4 chips for 5 hours, or one chip for 315. An estimate, not a measurement: 208 GFLOP
per example forward and backward, at 40 % of the chips' peak.
Score to expect: 64.1 % ImageNet linear probe, top 1 (Geng et al. 2022, read off Figure 4).
"""

import dataclasses

from m3ae_tpu.config import ModelConfig, TransformerConfig
from m3ae_tpu.configs import m3ae_base

CONFIG = dataclasses.replace(
    m3ae_base.CONFIG,
    model=ModelConfig(
        encoder=TransformerConfig(num_layers=24, width=1_024, num_heads=16),
    ),
)
