"""ViT-H/16, larger than the paper's: `m3ae_base` with an encoder of 32 blocks of 1,280 channels.

    python -m pipelines.pretrain --config=m3ae_huge --workdir=runs/m3ae_huge

Needs: 128 TPU v4 chips for 6 hours, or one chip for 740. An estimate, not a measurement: 368 GFLOP
per example forward and backward, and 123 to recompute the blocks, at 40 % of the chips' peak.
Score to expect: unknown; the paper does not train this size.
"""

import dataclasses

from m3ae_tpu.config import ModelConfig, TransformerConfig
from m3ae_tpu.configs import m3ae_base

CONFIG = dataclasses.replace(
    m3ae_base.CONFIG,
    model=ModelConfig(
        encoder=TransformerConfig(num_layers=32, width=1_280, num_heads=16),
        remat=True,
    ),
)
