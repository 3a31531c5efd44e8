"""A tiny language model that grows, on text made for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from esper.configs import DatasetConfig, ModelConfig, TaskConfig, TolariaConfig
from tests.conftest import STACK, tiny_config

__all__ = ["text_config", "write_texts"]


def write_texts(folder: Path) -> Path:
    """40 documents of 600 bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(40):
        (folder / f"{i:02}.txt").write_text(f"the cat {i} sat on mat {i * i}. " * 25)
    return folder


def text_config(folder: Path, **changes: Any) -> TolariaConfig:
    """Three epochs of eight steps; two blocks, doubled by copies after the first."""
    settings: dict[str, Any] = {
        "model": ModelConfig(
            name="gpt", width=16, depth=2, heads=2, target_layers=["blocks"], site_kinds=["after"], seeds_per_layer=64
        ),
        "dataset": DatasetConfig(
            name="text", data_dir=str(folder), context=16, batch_size=8, epoch_windows=64, val_split=0.3
        ),
        "task": TaskConfig(name="language_model"),
        "optimization__optimizer": "adamw",
        "optimization__learning_rate": 0.01,
    }
    return tiny_config(**(settings | STACK | changes))
