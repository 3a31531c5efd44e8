"""What a task is.

To add a metric: a line in the `metrics` of its task's file, and its row in docs/guide.md. To add a task: its file here
with `build(config, spec, device) -> Task`, a line in `TASKS` of esper/configs/task.py, and conf/task/NAME.yaml.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from esper.contracts.metrics import MetricInfo
from esper.devices import sum_dtype

__all__ = ["Detail", "Metric", "Task", "as_figures", "by_example", "mean_values", "num_values", "sum_values"]


def _only(_loss: float, means: Sequence[float]) -> float:
    (mean,) = means
    return mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric(MetricInfo):
    """A metric, computed from averages over examples (over tokens, for text).

    Attributes:
        values: from output and target on the device, the values to average: shaped like the losses, after a dimension
            of `num_values` if that is not 1. It must not read the device. None: the mean loss says all.
        num_values: how many averages it needs.
        figure: the metric from the mean loss and the averages; by default the only average.
        in_training: whether it is also measured on training batches, at every step.
    """

    values: Callable[[Tensor, Tensor], Tensor] | None = None
    num_values: int = 1
    figure: Callable[[float, Sequence[float]], float] = _only
    in_training: bool = True

    @property
    def info(self) -> MetricInfo:
        """What readers of a run need to know."""
        return MetricInfo(name=self.name, label=self.label, unit=self.unit, higher_is_better=self.higher_is_better)


@dataclass(frozen=True, slots=True, kw_only=True)
class Detail:
    """What the test at the end tells besides the metrics.

    Attributes:
        values, num_values: as those of a metric.
        describe: entries of the result, from the sums of the values; JSON, with names that begin with `test_`.
    """

    values: Callable[[Tensor, Tensor], Tensor]
    num_values: int
    describe: Callable[[Sequence[float]], dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a network learns.

    Attributes:
        name: as in the settings.
        losses: from output and target, the loss of every example (N,) or token (N, T), float32. Validation, verdicts
            and tests use it.
        metrics: the first one leads in tables, pages and statistics.
        training_loss: the mean loss that training minimises, 0-dim, if it is not the mean of `losses`: with label
            smoothing, for instance.
        detail: what the test at the end tells besides the metrics, if anything.
    """

    name: str
    losses: Callable[[Tensor, Tensor], Tensor]
    metrics: tuple[Metric, ...]
    training_loss: Callable[[Tensor, Tensor], Tensor] | None = None
    detail: Detail | None = None

    @property
    def training_metrics(self) -> tuple[Metric, ...]:
        """The metrics that are measured at every training step."""
        return tuple(metric for metric in self.metrics if metric.in_training)

    def objective(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean loss that training minimises, 0-dim."""
        if self.training_loss is not None:
            return self.training_loss(output, target)
        return self.losses(output, target).mean()


def by_example(losses: Tensor) -> Tensor:
    """The loss of every example (N,): the mean over its tokens, if it has any."""
    return losses if losses.ndim == 1 else losses.flatten(1).mean(1)


def num_values(metrics: Iterable[Metric | Detail]) -> int:
    """How many averages metrics need."""
    return sum(metric.num_values for metric in metrics if metric.values is not None)


def mean_values(metrics: Iterable[Metric], output: Tensor, target: Tensor) -> Tensor:
    """The averages over a batch that metrics need, one after the other, (K,) of `sum_dtype`."""
    dtype = sum_dtype(output.device)
    means = [values.to(dtype).mean(1) for values in _values(metrics, output, target)]
    return torch.cat(means) if means else torch.empty(0, dtype=dtype, device=output.device)


def sum_values(
    metrics: Iterable[Metric | Detail], output: Tensor, target: Tensor, *, counted: Tensor | None = None
) -> Tensor:
    """The sums over a batch of what `mean_values` averages, (K,) of `sum_dtype`.

    Args:
        metrics, output, target: as there.
        counted: which examples count, bool (N,); None: all.
    """
    sums, dtype = [], sum_dtype(output.device)
    for values in _values(metrics, output, target):
        if counted is not None:  # what does not count may be NaN
            values = values.reshape(len(values), len(counted), -1).masked_fill(~counted[:, None], 0).flatten(1)
        sums.append(values.sum(1, dtype=dtype))
    return torch.cat(sums) if sums else torch.empty(0, dtype=dtype, device=output.device)


def _values(metrics: Iterable[Metric | Detail], output: Tensor, target: Tensor) -> list[Tensor]:
    return [
        metric.values(output, target).reshape(metric.num_values, -1) for metric in metrics if metric.values is not None
    ]


def as_figures(metrics: Iterable[Metric], loss: float, means: Sequence[float]) -> dict[str, float]:
    """The metrics by name, from the mean loss and the averages of `mean_values`."""
    figures, start = {}, 0
    for metric in metrics:
        end = start + (metric.num_values if metric.values is not None else 0)
        figures[metric.name] = metric.figure(loss, means[start:end])
        start = end
    return figures
