"""The whole configuration of a run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from esper.configs.checkpoint import CheckpointConfig
from esper.configs.comparison import ComparisonConfig
from esper.configs.database import DatabaseConfig
from esper.configs.dataset import DatasetConfig
from esper.configs.logging import LoggingConfig
from esper.configs.model import ModelConfig
from esper.configs.morphogenetic import MorphogeneticConfig
from esper.configs.optimization import OptimizationConfig
from esper.configs.ranks import RanksConfig
from esper.configs.redis import RedisConfig
from esper.configs.schema import setting
from esper.configs.storage import StorageConfig
from esper.configs.task import TaskConfig
from esper.configs.tracking import TrackingConfig

__all__ = ["TolariaConfig", "derive_seed", "torch_seed"]


def torch_seed(rng_seed: int) -> int:
    """The seed in [0, 2^32) for torch's generators, of which that of the CPU drops all higher bits: they are hashed."""
    if rng_seed < 2**32:
        return rng_seed
    return int.from_bytes(hashlib.sha256(str(rng_seed).encode()).digest()[:4], "big")


def derive_seed(rng_seed: int, number: int) -> int:
    """Seed for one use in a run: the shuffle order of an epoch, the weights of a new kernel, or the draws of a rank."""
    return torch_seed(rng_seed) * 1_000_003 + number


@dataclass(kw_only=True)
class TolariaConfig:
    """All settings of a run. Constructing one has no side effects; `check` validates it."""

    model: ModelConfig = field(default_factory=ModelConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    morphogenetic: MorphogeneticConfig = field(default_factory=MorphogeneticConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    database: DatabaseConfig = field(default_factory=DatabaseConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    comparison: ComparisonConfig = field(default_factory=ComparisonConfig)
    redis: RedisConfig = field(default_factory=RedisConfig)
    ranks: RanksConfig = field(default_factory=RanksConfig)

    plugins: list[str] = setting(
        [], "modules of yours to import, which register models, datasets, tasks, blueprints or policies"
    )
    experiment_name: str = setting("morphogenetic_training", "name of the experiment, and of its folder in outputs/")
    description: str = setting("", "free text, recorded with the run")
    tags: list[str] = setting([], "free-form tags, recorded with the run")

    adjusted: list[str] = setting(
        [], "defaults that Esper has changed to follow other settings, such as the warm-up of one epoch; set by it"
    )

    bus: str = setting(
        "memory", "redis: publish health, decisions and outcomes; memory: publish nothing", choices=("memory", "redis")
    )
    rng_seed: int = setting(
        0, "random seed of splits, initial weights, shuffling and augmentation", low=0, high=2**63 - 1
    )
    device: str = setting(
        "auto",
        "auto: cuda if available, else cpu; cuda:N: the GPU of that number, from 0; mps: Apple's GPU, untested",
        choices=("auto", "cpu", "cuda", "cuda:N", "mps"),
        pattern=r"auto|cpu|mps|cuda(:(0|[1-9]\d{0,3}))?",
    )
    mixed_precision: bool | None = setting(
        None,
        "autocast training and validation to autocast_dtype (judging and the final test use float32); null: only on "
        "CUDA, since few CPUs are faster with it",
    )
    autocast_dtype: str = setting("bfloat16", "number format of mixed precision", choices=("bfloat16", "float16"))
    channels_last: bool = setting(True, "memory format NHWC, which is faster for convolutions on tensor cores")

    compile_model: bool = setting(
        False, "torch.compile blocks and new modules: faster steps, but some 20 s at the start and seconds per growth"
    )
    cudnn_benchmark: bool = setting(
        False,
        "let cuDNN benchmark its algorithms: some 3 % faster after some 10 s, but runs are not reproducible bit by bit",
    )

    debug_mode: bool = setting(
        False, "check every step for NaN and Inf, and name the operation that produced them; slow"
    )
    profile_training: bool = setting(False, "write a torch.profiler trace of a few steps to the run folder")
    dry_run: bool = setting(False, "validate, build, and run a few steps with one forced growth; leaves no files")
    fresh: bool = setting(False, "start from scratch; an existing run folder is set aside")
