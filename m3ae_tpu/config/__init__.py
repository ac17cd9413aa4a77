"""The settings of a run, as plain data. Imports only the standard library."""

from m3ae_tpu.config.data import DataConfig, Kind, SourceConfig
from m3ae_tpu.config.evaluation import EvaluationConfig, ProbeConfig
from m3ae_tpu.config.finetuning import (
    AugmentationConfig,
    FinetuneConfig,
    FinetuneOptimizerConfig,
    HeadConfig,
)
from m3ae_tpu.config.model import Dtype, ModelConfig, TransformerConfig
from m3ae_tpu.config.pretraining import LossConfig, MaskingConfig, PretrainConfig
from m3ae_tpu.config.training import (
    CheckpointConfig,
    GradientSums,
    LoggingConfig,
    MeshConfig,
    OptimizerConfig,
    RunConfig,
)

__all__ = [
    "AugmentationConfig",
    "CheckpointConfig",
    "DataConfig",
    "Dtype",
    "EvaluationConfig",
    "FinetuneConfig",
    "FinetuneOptimizerConfig",
    "GradientSums",
    "HeadConfig",
    "Kind",
    "LoggingConfig",
    "LossConfig",
    "MaskingConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PretrainConfig",
    "ProbeConfig",
    "RunConfig",
    "SourceConfig",
    "TransformerConfig",
]
