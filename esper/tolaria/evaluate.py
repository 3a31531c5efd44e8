"""Evaluate a model without changing it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from esper.kasmina.modes import evaluating
from esper.tasks import Task, as_figures, sum_values

__all__ = ["evaluate", "lowest", "measure"]

T = TypeVar("T")


def measure(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], task: Task) -> tuple[list[Tensor], Tensor]:
    """Losses, and the sums from which the task's metrics follow, in eval mode.

    Parameters, buffers and the model's mode stay as they are. The forward pass is in float32 (as for verdicts and
    results), unless the caller is in autocast.

    Returns:
        For each batch, the losses of its examples (N,) or tokens (N, T), float32; of a text, the last T may be smaller.
        What `sum_values` adds up, float64 (K,).
    """
    losses, sums = [], []
    with evaluating(model), torch.no_grad():
        for inputs, targets in batches:
            output = model(inputs)
            losses.append(task.losses(output, targets))
            sums.append(sum_values(task.metrics, output, targets))
    return losses, torch.stack(sums).sum(0)


def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], task: Task) -> tuple[float, dict[str, float]]:
    """Mean loss, and the task's metrics by name; see `measure`."""
    measured, sums = measure(model, batches, task)
    losses = torch.cat([batch.flatten() for batch in measured])
    loss = float(losses.double().mean())
    return loss, as_figures(task.metrics, loss, (sums / losses.numel()).tolist())


def lowest(losses: Mapping[T, float]) -> T:
    """The key with the lowest loss; a loss that is not finite is the highest."""
    return min(losses, key=lambda key: (not math.isfinite(losses[key]), losses[key]))
