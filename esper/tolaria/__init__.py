"""Tolaria: the trainer. Its loop, optimizer, growth, checkpoints and service."""

from __future__ import annotations

from esper.contracts.events import EpochEnded as TrainingMetrics
from esper.tolaria.service import TolariaService
from esper.tolaria.state import TrainingState
from esper.tolaria.trainer import TolariaTrainer

__all__ = ["TolariaService", "TolariaTrainer", "TrainingMetrics", "TrainingState"]
