"""`mae_base` for 53 % of its FLOPs: a shallow decoder predicts half of the hidden patches.

    python -m pipelines.pretrain --config=mae_base_fast --workdir=runs/mae_base_fast

Data: that of `mae_base`.
Needs: 61 hours of a TPU v4 chip, where `mae_base` needs 115. An estimate, not a measurement: 41
GFLOP per example forward and backward in place of 76, at 40 % of the chips' peak.
Score to expect: not known. A decoder of 2 blocks instead of 8 cost an MAE of ViT-L 3.5 points of
linear probe (70.0 and 73.5 %), and nothing after fine-tuning (He et al. 2022, Table 1a). What it
costs on the starter set: docs/results/starter.md, "A cheaper decoder".
"""

import dataclasses

from m3ae_tpu.configs import m3ae_base_fast, mae_base

CONFIG = dataclasses.replace(
    mae_base.CONFIG,
    model=dataclasses.replace(mae_base.CONFIG.model, decoder=m3ae_base_fast.CONFIG.model.decoder),
    masking=m3ae_base_fast.CONFIG.masking,
)
