"""Where a training stands, and what an epoch gave."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["TrainingMetrics", "TrainingState"]


@dataclass(kw_only=True)
class TrainingState:
    """Current state of the training process; all of it is saved in a checkpoint.

    Attributes:
        epoch: epochs finished.
        step: steps done in the current epoch.
        global_step: optimizer steps done.
        best_loss: lowest validation loss so far.
        best_accuracy: validation accuracy of that epoch.
        epochs_since_best: epochs since the loss improved by `min_delta`, or since growth.
        adaptations_this_epoch: decisions carried out after the last epoch.
        total_adaptations: decisions carried out.
        last_adaptation_epoch: epoch of the last one; -1: never.
        epoch_seconds: time spent in the current epoch, over all processes that worked on it.
        total_seconds: time spent in the run before the current epoch.
        train_macs: multiply-accumulates of training steps (a backward pass counts as two forward passes).
        discarded_macs: the part of `train_macs` that went into modules which were culled.
        scoring_macs: multiply-accumulates of scoring sites.
        forking_macs: those of short forks that settle between two sites.
        incubation_macs: those of training modules before they join the host, and of finding their alpha.
        judging_macs: those of judging modules, and of re-estimating norm statistics after a cull.
        peak_parameters: most parameters the network has had.
    """

    epoch: int = 0
    step: int = 0
    global_step: int = 0
    best_loss: float = math.inf
    best_accuracy: float = 0.0
    epochs_since_best: int = 0
    adaptations_this_epoch: int = 0
    total_adaptations: int = 0
    last_adaptation_epoch: int = -1
    epoch_seconds: float = 0.0
    total_seconds: float = 0.0
    train_macs: int = 0
    discarded_macs: int = 0
    scoring_macs: int = 0
    forking_macs: int = 0
    incubation_macs: int = 0
    judging_macs: int = 0
    peak_parameters: int = 0

    @property
    def growth_macs(self) -> int:
        """Multiply-accumulates that only growing needs, beside the training steps."""
        return self.scoring_macs + self.forking_macs + self.incubation_macs + self.judging_macs


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingMetrics:
    """Result of one epoch; accuracies are fractions, times seconds.

    `adaptations_applied` counts the decisions carried out just before it: they shaped the network it trained.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    adaptations_applied: int
    epoch_time: float
