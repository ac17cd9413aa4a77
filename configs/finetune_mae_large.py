"""MAE's recipe for ViT-L/16 on ImageNet: 50 epochs (He et al. 2022).

    python -m pipelines.finetune --config=finetune_mae_large --model=runs/m3ae_large \\
        --workdir=runs/finetune_mae_large

Data: as `finetune_mae_base`.
Needs: 64 TPU v4 chips for an hour, or one chip for 60. An estimate, not a measurement: 370 GFLOP
per image forward and backward, at 40 % of the chips' peak.
Score to expect: 85.9 % top 1 for MAE pre-trained for 1,600 epochs on ImageNet (He et al. 2022).
"""

import dataclasses

from m3ae_tpu.configs import finetune_mae_base, m3ae_large

CONFIG = dataclasses.replace(
    finetune_mae_base.CONFIG,
    num_steps=62_550,
    model=dataclasses.replace(
        finetune_mae_base.CONFIG.model, encoder=m3ae_large.CONFIG.model.encoder
    ),
    drop_path=0.2,
    optimizer=dataclasses.replace(
        finetune_mae_base.CONFIG.optimizer,
        base_learning_rate=1e-3,
        warmup_fraction=0.1,  # 5 epochs of 50.
        layer_decay=0.75,
    ),
)
