"""A run of seconds on any machine, to see that the whole program works.

    python -m pipelines.pretrain --config=debug --workdir=runs/debug

Data: the starter set, which ships with the package.
Needs: one core, about 20 seconds, most of them compiling.
Score to expect: none; 40 steps only show that the loss falls.
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
    num_steps=40,
    batch_size=16,
    model=ModelConfig(
        patch_size=8,
        vocab_size=4_000,
        encoder=TransformerConfig(num_layers=2, width=32, num_heads=4),
        decoder=TransformerConfig(num_layers=1, width=32, num_heads=2),
        compute_dtype="float32",
    ),
    optimizer=OptimizerConfig(base_learning_rate=6e-3, warmup_fraction=0.1),
    data=DataConfig(
        sources=(SourceConfig(text_length=24),),
        image_size=32,
        num_workers=0,
    ),
    checkpoint=CheckpointConfig(every_steps=10),
    logging=LoggingConfig(every_steps=1),
)
