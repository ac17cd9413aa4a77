"""The paper's ViT-B/16 at 50 epochs of CC12M, images of 256 pixels with captions.

    python -m pipelines.pretrain --config=m3ae_base --workdir=runs/m3ae_base

Data: 12 million pairs as shards data/cc12m/train-* and a SentencePiece model of 32,000 pieces
beside them (`python -m pipelines.train_tokenizer`).
Needs: 64 TPU v4 chips for 2.5 hours, or one chip for 150. An estimate, not a measurement: 101 GFLOP
per example forward and backward, 146,000 steps of 4,096, at 40 % of the chips' peak.
Score to expect: 58.2 % ImageNet linear probe, top 1 (Geng et al. 2022, read off Figure 4).
"""

from m3ae_tpu.config import (
    CheckpointConfig,
    DataConfig,
    OptimizerConfig,
    PretrainConfig,
    SourceConfig,
)

CONFIG = PretrainConfig(
    seed=42,
    num_steps=146_000,  # 50 epochs of 12 million pairs.
    batch_size=4_096,
    optimizer=OptimizerConfig(
        base_learning_rate=1.5e-4,
        warmup_fraction=0.1,  # 5 epochs of 50.
    ),
    data=DataConfig(
        sources=(SourceConfig(shards="data/cc12m/train-*", text_length=64),),
        tokenizer="data/cc12m/tokenizer.model",
        num_workers=16,
    ),
    checkpoint=CheckpointConfig(every_steps=2_000),
)
