"""Evaluate a model without changing it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from esper import turns
from esper.data import Split
from esper.kasmina.modes import evaluating
from esper.tasks import Detail, Metric, Task, as_figures, num_values, sum_values

if TYPE_CHECKING:
    from esper.build import Parts
    from esper.tolaria.ranks import Ranks

__all__ = ["evaluate", "evaluate_in_detail", "evaluate_on_ranks", "lowest", "measure"]

T = TypeVar("T")


def measure(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], task: Task, *, with_detail: bool = False
) -> tuple[list[Tensor], Tensor]:
    """Losses, and the sums from which the task's metrics follow (and its detail), in eval mode.

    Parameters, buffers and the model's mode stay as they are. The forward pass is in float32 (as for verdicts and
    results), unless the caller is in autocast.

    Returns:
        For each batch, the losses of its examples (N,) or tokens (N, T), float32; of a text, the last T may be smaller.
        What `sum_values` adds up, float64 (K,).
    """
    metrics: list[Metric | Detail] = [*task.metrics]
    if with_detail and task.detail is not None:
        metrics.append(task.detail)
    losses, sums = [], []
    with evaluating(model), torch.no_grad():
        for inputs, targets in batches:
            output = model(inputs)
            losses.append(task.losses(output, targets))
            sums.append(sum_values(metrics, output, targets))
            turns.pass_on()
    return losses, torch.stack(sums).sum(0)


def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], task: Task) -> tuple[float, dict[str, float]]:
    """Mean loss, and the task's metrics by name; see `measure`."""
    return evaluate_in_detail(model, batches, task, with_detail=False)[:2]


def evaluate_in_detail(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], task: Task, *, with_detail: bool = True
) -> tuple[float, dict[str, float], dict[str, Any]]:
    """Mean loss, the task's metrics by name, and its detail if asked for; see `measure`."""
    measured, sums = measure(model, batches, task, with_detail=with_detail)
    losses = _flat(measured)
    turns.wait_for_device()
    return _figures(task, float(losses.mean()), losses.numel(), sums.tolist(), with_detail=with_detail)


def evaluate_on_ranks(
    model: nn.Module, split: Split, parts: Parts, ranks: Ranks, *, with_detail: bool = False
) -> tuple[float, dict[str, float], dict[str, Any]]:
    """Mean loss of a split, the task's metrics, and its detail if asked for.

    Each rank evaluates a shard, with rank 0's batch-norm statistics.
    """
    task = parts.task
    if ranks.size == 1:
        return evaluate_in_detail(model, parts.evaluation_batches(split), task, with_detail=with_detail)
    ranks.broadcast(model.buffers())
    shard = split[torch.arange(len(split))[ranks.shard(len(split))]]
    size = num_values(task.metrics) + (task.detail.num_values if with_detail and task.detail else 0)
    added = torch.zeros(size + 2, dtype=torch.float64, device=parts.device)
    if len(shard):
        measured, sums = measure(model, parts.evaluation_batches(shard), task, with_detail=with_detail)
        losses = _flat(measured)
        added += torch.cat([losses.sum()[None], sums, added.new_tensor([losses.numel()])])
    ranks.all_reduce_sum([added])
    total_loss, *totals, count = added.tolist()
    return _figures(task, total_loss / count, count, totals, with_detail=with_detail)


def _figures(
    task: Task, loss: float, count: float, totals: list[float], *, with_detail: bool
) -> tuple[float, dict[str, float], dict[str, Any]]:
    """Mean loss, metrics and detail, from the sums over `count` losses that `measure` returns."""
    num_metrics, detail = num_values(task.metrics), task.detail if with_detail else None
    figures = as_figures(task.metrics, loss, [total / count for total in totals[:num_metrics]])
    return loss, figures, detail.describe(totals[num_metrics:]) if detail else {}


def _flat(losses: list[Tensor]) -> Tensor:
    """The losses of all batches, float64 (N,)."""
    return torch.cat([batch.flatten() for batch in losses]).double()


def lowest(losses: Mapping[T, float]) -> T:
    """The key with the lowest loss; a loss that is not finite is the highest."""
    return min(losses, key=lambda key: (not math.isfinite(losses[key]), losses[key]))
