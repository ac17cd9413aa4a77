"""The paper's ViT-S/16: `m3ae_base` with an encoder half as wide.

    python -m pipelines.pretrain --config=m3ae_small --workdir=runs/m3ae_small

Needs: 64 TPU v4 chips for 1.7 hours, or one chip for 105. An estimate, not a measurement: 70 GFLOP
per example forward and backward, most of it the decoder's, at 40 % of the chips' peak.
Score to expect: 38.2 % ImageNet linear probe, top 1 (Geng et al. 2022, read off Figure 4).
"""

import dataclasses

from m3ae_tpu.config import ModelConfig, TransformerConfig
from m3ae_tpu.configs import m3ae_base

CONFIG = dataclasses.replace(
    m3ae_base.CONFIG,
    model=ModelConfig(encoder=TransformerConfig(num_layers=12, width=384, num_heads=6)),
)
