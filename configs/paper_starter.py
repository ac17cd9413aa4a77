"""The paper's experiments at the size of the starter set: `pipelines.paper --scale=starter`.

    python -m pipelines.pretrain --config=paper_starter --workdir=runs/paper_starter

Pairs alone, as in the paper. `pipelines.paper` changes one thing at a time, and fits the number of
steps to the machine.

Data: the starter set's training split, which ships with the package: 3,894 images with captions.
Needs: two CPU cores for two minutes.
Score to expect: the linear probe of held-out images is two points above that of the untrained
encoder.
"""

from m3ae_tpu.config import (
    CheckpointConfig,
    DataConfig,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    PretrainConfig,
    SourceConfig,
    TransformerConfig,
)

CONFIG = PretrainConfig(
    num_steps=600,
    batch_size=40,
    model=ModelConfig(
        patch_size=8,
        vocab_size=4_000,
        encoder=TransformerConfig(num_layers=4, width=128, num_heads=4),
        decoder=TransformerConfig(num_layers=1, width=64, num_heads=2),
        compute_dtype="float32",
        unroll=4,
    ),
    optimizer=OptimizerConfig(
        base_learning_rate=1.28e-2,
        warmup_fraction=0.1,
        clip_norm=1.0,
        accumulation_steps=2,  # The same update, and on CPUs in less time.
    ),
    data=DataConfig(
        sources=(SourceConfig(text_length=24),),
        image_size=64,
        image_mean=(0.835, 0.793, 0.756),
        image_std=(0.264, 0.289, 0.317),
        crop_area=(0.4, 1.0),
        num_workers=0,
    ),
    checkpoint=CheckpointConfig(every_steps=200, keep=1),
    logging=LoggingConfig(every_steps=20),
)
