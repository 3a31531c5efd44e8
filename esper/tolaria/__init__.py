"""Tolaria: the trainer. Its loop, optimizer, growth, checkpoints and service."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esper.contracts.events import EpochEnded as TrainingMetrics
    from esper.tolaria.service import TolariaService
    from esper.tolaria.state import TrainingState
    from esper.tolaria.trainer import TolariaTrainer

__all__ = ["TolariaService", "TolariaTrainer", "TrainingMetrics", "TrainingState"]

_PLACES = {
    "TolariaService": ("esper.tolaria.service", "TolariaService"),
    "TolariaTrainer": ("esper.tolaria.trainer", "TolariaTrainer"),
    "TrainingMetrics": ("esper.contracts.events", "EpochEnded"),
    "TrainingState": ("esper.tolaria.state", "TrainingState"),
}


def __getattr__(name: str) -> Any:
    # Lazy: `esper.load` reads checkpoints without the trainer.
    if name not in _PLACES:
        raise AttributeError(f"module 'esper.tolaria' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(module), attribute)
