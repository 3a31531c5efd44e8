"""Classification: one class an example, from logits (N, C)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from esper.configs import TaskConfig
from esper.data import DataSpec
from esper.errors import ConfigError
from esper.tasks.task import Detail, Metric, Task

__all__ = ["build", "class_weights"]

_MIN_CLASSES_FOR_TOP5 = 6
_MAX_CONFUSION = 100
"""Most classes of which the confusion matrix is kept."""


def build(config: TaskConfig, spec: DataSpec, device: torch.device) -> Task:
    """Cross-entropy; targets are classes int64 (N,), or probabilities (N, C) in training.

    Raises:
        ConfigError: `class_weights` has not one entry for each class.
    """
    num_classes, smoothing = spec.num_outputs, config.label_smoothing
    weights = class_weights(config, spec, device)

    def training_loss(logits: Tensor, target: Tensor) -> Tensor:
        if weights is None:
            return F.cross_entropy(logits, target, label_smoothing=smoothing)
        # Not normalised by the weights in the batch, so that parts of a batch add up.
        losses = F.cross_entropy(logits, target, weight=weights, label_smoothing=smoothing, reduction="none")
        return losses.mean()

    metrics = [
        Metric(name="accuracy", label="accuracy", unit="%", higher_is_better=True, values=_is_correct),
        Metric(
            name="balanced_accuracy",
            label="balanced accuracy",
            unit="%",
            higher_is_better=True,
            values=lambda logits, target: _by_class(logits, target, num_classes),
            num_values=2 * num_classes,
            figure=_mean_recall,
            in_training=False,
        ),
    ]
    if num_classes >= _MIN_CLASSES_FOR_TOP5:
        metrics.append(
            Metric(
                name="top5",
                label="top-5 accuracy",
                unit="%",
                higher_is_better=True,
                values=lambda logits, target: (logits.topk(5).indices == target[:, None]).any(1),
                in_training=False,
            )
        )
    return Task(
        name=config.name,
        losses=_losses,
        metrics=tuple(metrics),
        training_loss=training_loss,
        detail=_detail(num_classes, spec.output_names),
    )


def class_weights(config: TaskConfig, spec: DataSpec, device: torch.device) -> Tensor | None:
    """The configured weights, float32 (C,); None: all are 1.

    Raises:
        ConfigError: there is not one for each class.
    """
    if not config.class_weights:
        return None
    if len(config.class_weights) != spec.num_outputs:
        raise ConfigError(
            f"task.class_weights: has {len(config.class_weights)} entries, but the network has {spec.num_outputs} "
            "outputs; give one for each, or []"
        )
    return torch.tensor(config.class_weights, device=device)


def _losses(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, target, reduction="none")


def _is_correct(logits: Tensor, target: Tensor) -> Tensor:
    labels = target.argmax(dim=1) if target.is_floating_point() else target
    return logits.argmax(dim=1) == labels


def _by_class(logits: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Whether an example is of a class and classified correctly, and whether it is of the class: bool (2 C, N)."""
    is_of_class = torch.arange(num_classes, device=target.device)[:, None] == target
    return torch.cat([is_of_class & _is_correct(logits, target), is_of_class])


def _detail(num_classes: int, names: Sequence[str]) -> Detail:
    """The accuracy of every class; up to 100 classes also the confusion matrix: rows are the true classes."""
    names = [*names, *map(str, range(len(names), num_classes))]

    def accuracies(correct: Sequence[float], of_class: Sequence[float]) -> dict[str, float | None]:
        shares = [one / total if total else None for one, total in zip(correct, of_class, strict=True)]
        return dict(zip(names, shares, strict=True))

    def by_class(sums: Sequence[float]) -> dict[str, Any]:
        return {"test_class_accuracy": accuracies(sums[:num_classes], sums[num_classes:])}

    def confusion(sums: Sequence[float]) -> dict[str, Any]:
        rows = [list(map(int, sums[i * num_classes : (i + 1) * num_classes])) for i in range(num_classes)]
        correct = [row[i] for i, row in enumerate(rows)]
        return {"test_class_accuracy": accuracies(correct, list(map(sum, rows))), "test_confusion": rows}

    if num_classes > _MAX_CONFUSION:
        return Detail(
            values=lambda logits, target: _by_class(logits, target, num_classes),
            num_values=2 * num_classes,
            describe=by_class,
        )
    return Detail(
        values=lambda logits, target: (
            torch.arange(num_classes**2, device=target.device)[:, None] == target * num_classes + logits.argmax(1)
        ),
        num_values=num_classes**2,
        describe=confusion,
    )


def _mean_recall(_loss: float, means: Sequence[float]) -> float:
    """Mean over the classes that occur of the share of their examples that is classified correctly."""
    half = len(means) // 2
    recalls = [correct / share for correct, share in zip(means[:half], means[half:], strict=True) if share]
    return sum(recalls) / len(recalls) if recalls else float("nan")
