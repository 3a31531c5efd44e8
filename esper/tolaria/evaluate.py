"""Evaluate a model without changing it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from esper import turns
from esper.data import Split
from esper.devices import in_double
from esper.kasmina.modes import evaluating
from esper.tasks import Detail, Metric, Task, as_figures, num_values, sum_values

if TYPE_CHECKING:
    from esper.build import Parts
    from esper.tolaria.captured_evaluation import CapturedMeasure
    from esper.tolaria.ranks import Ranks

__all__ = ["Evaluation", "begin_evaluation", "evaluate", "evaluate_in_detail", "lowest", "measure"]

T = TypeVar("T")


def measure(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], task: Task, *, with_detail: bool = False
) -> tuple[list[Tensor], Tensor]:
    """Losses, and the sums from which the task's metrics follow (and its detail), in eval mode.

    Parameters, buffers and the model's mode stay as they are. The forward pass is in float32 (as for verdicts and
    results), unless the caller is in autocast.

    Returns:
        For each batch, the losses of its examples (N,) or tokens (N, T), float32; of a text, the last T may be smaller.
        What `sum_values` adds up, (K,).
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
    return _evaluation(measure(model, batches, task), task).figures()


def evaluate_in_detail(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], task: Task
) -> tuple[float, dict[str, float], dict[str, Any]]:
    """Mean loss, the task's metrics by name, and its detail; see `measure`."""
    return _evaluation(measure(model, batches, task, with_detail=True), task, with_detail=True).figures_and_detail()


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What was measured on a split, still on the device.

    Attributes:
        values: mean loss, sums of what `sum_values` adds up, and number of losses: float64 (K + 2,).
        task: its metrics.
        with_detail: whether the task's detail was measured.
    """

    values: Tensor
    task: Task
    with_detail: bool

    def figures(self) -> tuple[float, dict[str, float]]:
        """Mean loss, and the task's metrics by name; waits for the device."""
        return self.figures_and_detail()[:2]

    def figures_and_detail(self) -> tuple[float, dict[str, float], dict[str, Any]]:
        """Mean loss, the task's metrics by name, and its detail if it was measured; waits for the device."""
        turns.wait_for_device()
        loss, *totals, count = self.values.tolist()
        num_metrics, detail = num_values(self.task.metrics), self.task.detail if self.with_detail else None
        figures = as_figures(self.task.metrics, loss, [total / count for total in totals[:num_metrics]])
        return loss, figures, detail.describe(totals[num_metrics:]) if detail else {}


def begin_evaluation(
    model: nn.Module,
    split: Split,
    parts: Parts,
    ranks: Ranks,
    *,
    with_detail: bool = False,
    captured_measure: CapturedMeasure | None = None,
) -> Evaluation:
    """Measure a split; on CUDA nothing waits for the device, though a streamed split waits for its files.

    Each rank measures a shard, with rank 0's batch-norm statistics.

    Args:
        model: the network.
        split, parts, ranks: what to measure, with which task, by whom.
        with_detail: whether to measure the task's detail too.
        captured_measure: used instead of `measure`.
    """
    task = parts.task

    def measured(split: Split) -> tuple[list[Tensor], Tensor]:
        batches = parts.evaluation_batches(split)
        if captured_measure is not None:
            return captured_measure(batches)
        return measure(model, batches, task, with_detail=with_detail)

    if ranks.size == 1:
        return _evaluation(measured(split), task, with_detail=with_detail)
    ranks.broadcast(model.buffers())
    shard = split[torch.arange(len(split))[ranks.shard(len(split))]]
    size = num_values(task.metrics) + (task.detail.num_values if with_detail and task.detail else 0)
    added = torch.zeros(size + 2, dtype=torch.float64, device=parts.device)
    if len(shard):
        losses, sums = measured(shard)
        flat = _flat(losses)
        added += torch.cat([flat.sum()[None], sums, sums.new_full((1,), flat.numel())])
    ranks.all_reduce_sum([added])
    return Evaluation(values=torch.cat([added[:1] / added[-1], added[1:]]), task=task, with_detail=with_detail)


def _evaluation(measured: tuple[list[Tensor], Tensor], task: Task, *, with_detail: bool = False) -> Evaluation:
    losses, sums = _flat(measured[0]), in_double(measured[1])
    values = torch.cat([losses.mean()[None], sums, sums.new_full((1,), losses.numel())])
    return Evaluation(values=values, task=task, with_detail=with_detail)


def _flat(losses: list[Tensor]) -> Tensor:
    """The losses of all batches, float64 (N,)."""
    return in_double(torch.cat([batch.flatten() for batch in losses]))


def lowest(losses: Mapping[T, float]) -> T:
    """The key with the lowest loss; a loss that is not finite is the highest."""
    return min(losses, key=lambda key: (not math.isfinite(losses[key]), losses[key]))
