"""The configuration: a dataclass for each group, their checks, and `load_config`. Does not import torch."""

from __future__ import annotations

from esper.configs.checkpoint import CheckpointConfig
from esper.configs.comparison import ComparisonConfig
from esper.configs.database import DatabaseConfig
from esper.configs.dataset import DatasetConfig
from esper.configs.load import load_config
from esper.configs.logging import LoggingConfig
from esper.configs.model import ModelConfig
from esper.configs.morphogenetic import MorphogeneticConfig
from esper.configs.optimization import OptimizationConfig
from esper.configs.ranks import RanksConfig
from esper.configs.redis import RedisConfig
from esper.configs.storage import StorageConfig
from esper.configs.task import TaskConfig
from esper.configs.tolaria import TolariaConfig, derive_seed, torch_seed
from esper.configs.tracking import TrackingConfig

__all__ = [
    "CheckpointConfig",
    "ComparisonConfig",
    "DatabaseConfig",
    "DatasetConfig",
    "LoggingConfig",
    "ModelConfig",
    "MorphogeneticConfig",
    "OptimizationConfig",
    "RanksConfig",
    "RedisConfig",
    "StorageConfig",
    "TaskConfig",
    "TolariaConfig",
    "TrackingConfig",
    "derive_seed",
    "load_config",
    "torch_seed",
]
