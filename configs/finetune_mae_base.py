"""MAE's recipe for ViT-B/16 on ImageNet: 100 epochs, everything that He et al. (2022) do.

    python -m pipelines.finetune --config=finetune_mae_base --model=runs/mae_base \\
        --workdir=runs/finetune_mae_base

Data: ImageNet as labelled shards (`prepare_data --kind=labelled`), data/imagenet/train-* and
data/imagenet/val-*.
Needs: 64 TPU v4 chips for half an hour, or one chip for 34. An estimate, not a measurement: 105
GFLOP per image forward and backward, at 40 % of the chips' peak.
Score to expect: 83.6 % top 1 for MAE pre-trained for 1,600 epochs on ImageNet (He et al. 2022).
"""

from m3ae_tpu.config import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    FinetuneConfig,
    FinetuneOptimizerConfig,
    ModelConfig,
    SourceConfig,
    TransformerConfig,
)

CONFIG = FinetuneConfig(
    num_steps=125_100,  # 100 epochs of 1,281,167 images.
    batch_size=1_024,
    model=ModelConfig(vocab_size=0, decoder=TransformerConfig(num_layers=0)),
    drop_path=0.1,
    label_smoothing=0.1,
    optimizer=FinetuneOptimizerConfig(
        base_learning_rate=5e-4,
        end_learning_rate=2.5e-7,  # 1e-6 for this batch.
        warmup_fraction=0.05,  # 5 epochs.
        layer_decay=0.65,
    ),
    data=DataConfig(
        sources=(SourceConfig(kind="image", shards="data/imagenet/train-*"),),
        image_size=224,
        image_mean=(0.485, 0.456, 0.406),
        image_std=(0.229, 0.224, 0.225),
        crop_area=(0.08, 1.0),
        num_workers=16,
    ),
    evaluation=EvaluationConfig(shards="data/imagenet/val-*", every_steps=12_510),
    checkpoint=CheckpointConfig(every_steps=2_502),
)
"""RandAugment, erasing, mixup and cutmix are the defaults, which are MAE's."""
