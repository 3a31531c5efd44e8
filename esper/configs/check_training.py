"""Check how a run trains: its optimizer and the options of it."""

from __future__ import annotations

import math
from typing import Any

from esper.configs.dataset import DATASETS
from esper.configs.explain import nearest
from esper.configs.optimization import OPTIMIZERS, OptimizationConfig
from esper.configs.tolaria import TolariaConfig
from esper.errors import ConfigError

__all__ = ["check_training"]


def check_training(config: TolariaConfig) -> None:
    """Check how the run trains.

    Raises:
        ConfigError: the first problem.
    """
    _check_optimization(config.optimization)
    _check_augmentation(config)
    accumulate, batch_size = config.optimization.accumulate, config.dataset.batch_size
    if accumulate > 1 and batch_size < 2 * accumulate:  # batch norm needs two examples
        raise ConfigError(
            f"optimization.accumulate={accumulate}: splits each batch of dataset.batch_size={batch_size}, the examples "
            f"of one optimizer step; allowed is at most {max(1, batch_size // 2)}, or use a larger batch"
        )


def _check_augmentation(config: TolariaConfig) -> None:
    dataset = config.dataset
    mixes = {"dataset.mixup_alpha": dataset.mixup_alpha, "dataset.cutmix_alpha": dataset.cutmix_alpha}
    info = DATASETS[dataset.name]
    may_have_images = info.image_size is not None or info.has_files or dataset.name == "plugin"
    others = {
        "dataset.random_erasing": dataset.random_erasing,
        "dataset.rand_augment_num_ops": dataset.rand_augment_num_ops,
    }
    for key, value in {**mixes, **others}.items():
        if value and not may_have_images:
            raise ConfigError(f"{key}={value}: is for images, which dataset={dataset.name} has none of; leave it 0")
        if value and key in mixes and config.task.name != "classification":
            raise ConfigError(f"{key}={value}: mixes classes, but task={config.task.name}; leave it 0")


def _check_optimization(config: OptimizationConfig) -> None:
    if config.max_macs is None and config.warmup_epochs >= config.max_epochs:
        raise ConfigError(
            f"optimization.warmup_epochs={config.warmup_epochs:g}: allowed is below "
            f"optimization.max_epochs={config.max_epochs}"
        )
    allowed = OPTIMIZERS[config.optimizer].options
    for name, value in config.optimizer_options.items():
        key = f"optimization.optimizer_options.{name}"
        if name not in allowed:
            raise ConfigError(
                f"{key}={value}: options of {config.optimizer} are {', '.join(allowed) or 'none'}"
                f"{nearest(name, allowed)}"
            )
        if not _is_like(value, allowed[name]):
            raise ConfigError(f"{key}={value!r}: must be {_kind(allowed[name])}, such as {_shown(allowed[name])}")


def _is_like(value: Any, example: Any) -> bool:
    """Whether an option has the type of its default, and is finite."""
    if isinstance(example, list):
        return isinstance(value, list) and len(value) == len(example) and all(map(_is_like, value, example))
    if isinstance(example, bool | str):
        return type(value) is type(example)
    is_number = isinstance(value, int if isinstance(example, int) else int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _kind(example: Any) -> str:
    if isinstance(example, list):
        return f"{len(example)} numbers"
    return {bool: "true or false", str: "text", int: "a whole number"}.get(type(example), "a number")


def _shown(example: Any) -> str:
    return str(example).lower() if isinstance(example, bool) else str(example)
