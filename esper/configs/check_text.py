"""Check the settings of text: its data, network and task belong together."""

from __future__ import annotations

from pathlib import Path

from esper.configs.dataset import DATASETS, DatasetConfig
from esper.configs.model import HOSTS, ModelConfig
from esper.configs.task import TASKS
from esper.configs.tolaria import TolariaConfig
from esper.errors import ConfigError

__all__ = ["check_text"]


def check_text(config: TolariaConfig) -> None:
    """Refuse text for what reads images, and the other way round.

    Raises:
        ConfigError: the first problem.
    """
    model, dataset = config.model, config.dataset
    reads_text, is_known = model.name == "gpt" and model.source != "timm", model.source == "timm" or model.name in HOSTS
    if dataset.name in DATASETS and DATASETS[dataset.name].is_text:
        if is_known and not reads_text:
            raise ConfigError(f"model={model.name}: reads images, but dataset={dataset.name} is text; use model=gpt")
        if config.task.name in TASKS and config.task.name != "language_model":
            raise ConfigError(
                f"task={config.task.name}: dataset={dataset.name} is text, which has no other targets than its tokens; "
                "use task=language_model"
            )
        _check_files(dataset)
    elif dataset.name in DATASETS:
        if reads_text:
            raise ConfigError(f"model=gpt: reads text, but dataset={dataset.name} is not; use dataset=python_source")
        if config.task.name == "language_model":
            raise ConfigError(f"task=language_model: dataset={dataset.name} is no text; use task=classification")
    if reads_text:
        _check_heads(model)


def _check_heads(model: ModelConfig) -> None:
    if model.positions == "rotary" and model.width // model.heads % 2:
        raise ConfigError(
            f"model.positions=rotary: rotates pairs of features, but a head has {model.width // model.heads} "
            f"(model.width={model.width} / model.heads={model.heads}); make that even, or use positions=learned"
        )


def _check_files(dataset: DatasetConfig) -> None:
    if dataset.name == "text" and not Path(dataset.data_dir).expanduser().exists():
        raise ConfigError(
            f"dataset.data_dir={dataset.data_dir}: no such file or folder; give one that holds text, or use "
            "dataset=python_source"
        )
    if dataset.tokenizer is not None and not Path(dataset.tokenizer).expanduser().is_file():
        raise ConfigError(
            f"dataset.tokenizer={dataset.tokenizer}: no such file; give a tokenizer.json of the library tokenizers, or "
            "null for bytes"
        )
    if dataset.epoch_windows is not None and dataset.epoch_windows < dataset.batch_size:
        raise ConfigError(
            f"dataset.epoch_windows={dataset.epoch_windows}: allowed is at least one batch, "
            f"dataset.batch_size={dataset.batch_size}, or null"
        )
