"""Multi-label classification: each of C labels applies or not, from logits (N, C)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from esper.configs import TaskConfig
from esper.data import DataSpec
from esper.errors import ConfigError
from esper.tasks.classification import class_weights
from esper.tasks.task import Metric, Task

__all__ = ["build"]


def build(config: TaskConfig, spec: DataSpec, device: torch.device) -> Task:
    """Binary cross-entropy, averaged over the labels; targets 0 or 1, (N, C). A label applies if its logit is above 0.

    Raises:
        ConfigError: `label_smoothing` is set, or `class_weights` has not one entry for each label.
    """
    if config.label_smoothing:
        raise ConfigError(f"task.label_smoothing={config.label_smoothing:g}: not for task=multilabel; leave it 0")
    weights = class_weights(config, spec, device)

    def training_loss(logits: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, target.float(), pos_weight=weights)

    metrics = (
        Metric(name="f1", label="F1", unit="%", higher_is_better=True, values=_counts, num_values=2, figure=_f1),
        Metric(
            name="exact_match",
            label="all labels right",
            unit="%",
            higher_is_better=True,
            values=lambda logits, target: ((logits > 0) == (target > 0)).all(1),
        ),
    )
    return Task(
        name=config.name, losses=_losses, metrics=metrics, training_loss=training_loss if config.class_weights else None
    )


def _losses(logits: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, target.float(), reduction="none").mean(1)


def _counts(logits: Tensor, target: Tensor) -> Tensor:
    """Labels given rightly, and labels given plus labels that apply, of every example: (2, N)."""
    given, applies = logits > 0, target > 0
    return torch.stack([(given & applies).sum(1), given.sum(1) + applies.sum(1)])


def _f1(_loss: float, means: Sequence[float]) -> float:
    """Micro-averaged over all labels of all examples; 1 if none is given and none applies."""
    right, given_and_applying = means
    return 2.0 * right / given_and_applying if given_and_applying else 1.0
