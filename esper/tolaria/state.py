"""The counters of a training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from esper.contracts.metrics import ACCURACY
from esper.costs import Ledger

__all__ = ["TrainingState"]


@dataclass(kw_only=True)
class TrainingState:
    """Counters of a training; all of them are saved in checkpoints.

    Attributes:
        epoch: epochs finished.
        step: steps done in the current epoch.
        global_step: optimizer steps done.
        best_loss: lowest validation loss so far.
        best_metrics: metrics of the validation at that epoch.
        epochs_since_best: epochs since the loss improved by `min_delta`, or since growth.
        adaptations_this_epoch: decisions carried out at the end of the last epoch.
        total_adaptations: decisions carried out in all.
        last_adaptation_epoch: epoch of the last one; -1: none.
        last_consultation: fraction of training done when Tamiyo was consulted last; None: never, or not known.
        epoch_seconds: time spent in the current epoch, before and after resuming.
        total_seconds: time spent in the run before the current epoch.
        ledger: MACs spent so far.
        peak_parameters: most parameters the network has had.
    """

    epoch: int = 0
    step: int = 0
    global_step: int = 0
    best_loss: float = math.inf
    best_metrics: dict[str, float] = field(default_factory=dict)
    epochs_since_best: int = 0
    adaptations_this_epoch: int = 0
    total_adaptations: int = 0
    last_adaptation_epoch: int = -1
    last_consultation: float | None = None
    epoch_seconds: float = 0.0
    total_seconds: float = 0.0
    ledger: Ledger = field(default_factory=Ledger)
    peak_parameters: int = 0

    def state_dict(self) -> dict[str, Any]:
        """Every counter by its name, as JSON; those of the ledger among them."""
        counters = dataclasses.asdict(self)
        ledger = counters.pop("ledger")
        return {**counters, **ledger}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        if "best_accuracy" in saved:  # a checkpoint of before there were tasks
            saved = {**saved, "best_metrics": {ACCURACY.name: saved["best_accuracy"]}}
            del saved["best_accuracy"]
        for name, value in saved.items():
            setattr(self.ledger if hasattr(self.ledger, name) else self, name, value)
