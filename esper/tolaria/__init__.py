"""Tolaria: the trainer, its loop, optimisation, checkpoints and service."""

from __future__ import annotations

from esper.tolaria.service import TolariaService
from esper.tolaria.state import TrainingMetrics, TrainingState
from esper.tolaria.trainer import TolariaTrainer

__all__ = ["TolariaService", "TolariaTrainer", "TrainingMetrics", "TrainingState"]
