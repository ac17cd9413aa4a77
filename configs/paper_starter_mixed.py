"""`paper_starter` where a tenth of the images has captions: for the paper's shares of pairs.

    python -m pipelines.pretrain --config=paper_starter_mixed --workdir=runs/paper_starter_mixed

The other images are seen without their captions. The loss is that of the paper's code, which takes
the mean over all images and counts a missing caption as 0.

Data, needs and score: those of `paper_starter`.
"""

import dataclasses

from m3ae_tpu.config import LossConfig, SourceConfig
from m3ae_tpu.configs import paper_starter

CONFIG = dataclasses.replace(
    paper_starter.CONFIG,
    loss=LossConfig(image_weight=0.1, text_weight=0.05, unpaired_image_weight=0.9),
    data=dataclasses.replace(
        paper_starter.CONFIG.data,
        sources=(
            SourceConfig(text_length=24, split=(0.0, 0.1), weight=4.0),
            SourceConfig(kind="image", split=(0.1, 1.0), weight=36.0),
        ),
    ),
)
