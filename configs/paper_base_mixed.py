"""`m3ae_base` at 100 epochs where a tenth of the images has captions: the paper's shares of pairs.

    python -m pipelines.pretrain --config=paper_base_mixed --workdir=runs/paper_base_mixed

`pipelines.paper --experiment=paired_share --scale=full` prints the flags of the other shares. The
loss is that of the paper's code, which takes the mean over all images and counts a missing caption
as 0. The weights give each of 32 chips equal rows of both kinds.

Data: that of `m3ae_base`.
Needs: twice those of `mae_base`. An estimate, not a measurement.
Score to expect: 53.3 % ImageNet linear probe, top 1 (Geng et al. 2022, read off Figure 3).
"""

import dataclasses

from m3ae_tpu.config import LossConfig, SourceConfig
from m3ae_tpu.configs import m3ae_base

CONFIG = dataclasses.replace(
    m3ae_base.CONFIG,
    num_steps=292_000,  # 100 epochs of 12 million images.
    optimizer=dataclasses.replace(m3ae_base.CONFIG.optimizer, warmup_fraction=0.05),
    loss=LossConfig(image_weight=0.1, text_weight=0.05, unpaired_image_weight=0.9),
    data=dataclasses.replace(
        m3ae_base.CONFIG.data,
        sources=(
            SourceConfig(shards="data/cc12m/train-*", split=(0.0, 0.1), weight=416.0),
            SourceConfig(
                kind="image", shards="data/cc12m/train-*", split=(0.1, 1.0), weight=3_680.0
            ),
        ),
    ),
)
