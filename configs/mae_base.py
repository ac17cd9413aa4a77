"""The paper's image-only baseline: MAE ViT-B/16 on the images of `m3ae_base`, without captions.

    python -m pipelines.pretrain --config=mae_base --workdir=runs/mae_base

Needs: 64 TPU v4 chips for 2 hours, or one chip for 115. An estimate, not a measurement: 76 GFLOP
per example forward and backward, at 40 % of the chips' peak.
Score to expect: 44.2 % ImageNet linear probe, top 1 (Geng et al. 2022, read off Figure 4).
"""

import dataclasses

from m3ae_tpu.config import ModelConfig, SourceConfig
from m3ae_tpu.configs import m3ae_base

CONFIG = dataclasses.replace(
    m3ae_base.CONFIG,
    model=ModelConfig(vocab_size=0),
    data=dataclasses.replace(
        m3ae_base.CONFIG.data,
        sources=(SourceConfig(kind="image", shards="data/cc12m/train-*"),),
        tokenizer="starter/tokenizer.model",
    ),
)
