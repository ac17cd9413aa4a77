"""The quick start's encoder learns the nine classes of the starter set.

    python -m pipelines.finetune --config=finetune_starter --model=runs/quickstart \\
        --workdir=runs/finetune_starter

Data: the starter set's 3,894 training images; its 973 held-out ones are the test.
Needs: 450 seconds of one core; without --model as long.
Score to expect: 0.53 with the encoder of a quick start, whose linear probe has 0.49, and 0.52 from
scratch.
"""

from m3ae_tpu.config import (
    AugmentationConfig,
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    FinetuneConfig,
    FinetuneOptimizerConfig,
    HeadConfig,
    LoggingConfig,
    ModelConfig,
    SourceConfig,
    TransformerConfig,
)

CONFIG = FinetuneConfig(
    num_steps=1_500,
    batch_size=32,
    model=ModelConfig(
        patch_size=8,
        vocab_size=0,
        encoder=TransformerConfig(num_layers=4, width=128, num_heads=4),
        decoder=TransformerConfig(num_layers=0),
        compute_dtype="float32",
        unroll=4,
    ),
    head=HeadConfig(pooling="cls_image_mean_max"),
    drop_path=0.0,
    image_mask_ratio=0.5,
    augmentation=AugmentationConfig(rand_augment_operations=0, erasing_probability=0.0),
    optimizer=FinetuneOptimizerConfig(
        name="muon",
        base_learning_rate=0.8e-2,
        warmup_fraction=0.1,
        layer_decay=0.75,
        clip_norm=1.0,
        average_decay=0.98,
    ),
    data=DataConfig(
        sources=(SourceConfig(kind="image"),),
        image_size=64,
        image_mean=(0.835, 0.793, 0.756),
        image_std=(0.264, 0.289, 0.317),
        crop_area=(1.0, 1.0),
        num_workers=0,
    ),
    evaluation=EvaluationConfig(shards="starter/heldout-*", every_steps=500),
    checkpoint=CheckpointConfig(every_steps=500),
    logging=LoggingConfig(every_steps=25),
)
