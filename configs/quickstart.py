"""A small M3AE that learns from the starter set in about nine minutes.

    make quickstart
    python -m pipelines.pretrain --config=quickstart --workdir=runs/quickstart

Data: the starter set's training split, which ships with the package: 3,894 images with captions,
300 images without, 10,672 texts without an image.
Needs: two CPU cores for about nine minutes, set-up and evaluation included.
Score to expect: 0.49 in the linear probe of held-out images; 0.43 with the untrained encoder, 0.42
with raw pixels. 0.74 of images with their captions.

Every row weighs the same: the loss weights of unpaired images and texts are those of pairs, times
8 / 64, their rows over the pairs' rows.
"""

from m3ae_tpu.config import (
    CheckpointConfig,
    DataConfig,
    LoggingConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    PretrainConfig,
    SourceConfig,
    TransformerConfig,
)

CONFIG = PretrainConfig(
    num_steps=800,
    batch_size=80,
    initial_words="cooccurrence",
    model=ModelConfig(
        patch_size=8,
        vocab_size=4_000,
        encoder=TransformerConfig(num_layers=4, width=128, num_heads=4),
        decoder=TransformerConfig(num_layers=1, width=64, num_heads=2),
        compute_dtype="float32",
        unroll=4,
    ),
    loss=LossConfig(unpaired_image_weight=0.125, unpaired_text_weight=0.0625),
    optimizer=OptimizerConfig(
        name="muon", base_learning_rate=9.6e-3, warmup_fraction=0.1, clip_norm=1.0
    ),
    data=DataConfig(
        sources=(
            SourceConfig(weight=64.0, text_length=24),
            SourceConfig(kind="image", shards="starter/images-*", weight=8.0),
            SourceConfig(kind="text", shards="starter/texts-*", weight=8.0, text_length=40),
        ),
        image_size=64,
        image_mean=(0.835, 0.793, 0.756),
        image_std=(0.264, 0.289, 0.317),
        crop_area=(0.4, 1.0),
        num_workers=0,
    ),
    checkpoint=CheckpointConfig(every_steps=200),
    logging=LoggingConfig(every_steps=10),
)
