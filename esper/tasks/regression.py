"""Regression: D numbers an example, (N, D); (N,) if it is one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from esper.configs import TaskConfig
from esper.data import DataSpec
from esper.devices import sum_dtype
from esper.errors import ConfigError
from esper.tasks.task import Metric, Task

__all__ = ["build"]

_ROUNDING = 1e-13
"""Variance, as a share of the mean square, that is but rounding error."""


def build(config: TaskConfig, spec: DataSpec, device: torch.device) -> Task:  # noqa: ARG001  (as of all tasks)
    """Mean squared error, over the numbers of an example.

    Raises:
        ConfigError: `label_smoothing` or `class_weights` are set, which need classes.
    """
    if config.label_smoothing or config.class_weights:
        raise ConfigError(
            "task=regression: has no classes; leave task.label_smoothing at 0 and task.class_weights at []"
        )
    metrics = (
        Metric(name="mse", label="mean squared error", higher_is_better=False, figure=lambda loss, _: loss),
        Metric(name="mae", label="mean absolute error", higher_is_better=False, values=_absolute_errors),
        Metric(
            name="r2",
            label="R²",
            higher_is_better=True,
            values=_squares,
            num_values=3 * spec.num_outputs,
            figure=_r2,
        ),
    )
    return Task(name=config.name, losses=_losses, metrics=metrics)


def _errors(output: Tensor, target: Tensor) -> Tensor:
    """Output minus target, float32 (N, D)."""
    output = output.flatten(1) if output.ndim > 1 else output[:, None]
    target = target.flatten(1) if target.ndim > 1 else target[:, None]
    if output.shape != target.shape:
        raise ConfigError(
            f"task=regression: the network gives {output.shape[1]} numbers an example, the targets have "
            f"{target.shape[1]}; make them equal"
        )
    return output.float() - target


def _losses(output: Tensor, target: Tensor) -> Tensor:
    return _errors(output, target).square().mean(1)


def _absolute_errors(output: Tensor, target: Tensor) -> Tensor:
    return _errors(output, target).abs().mean(1)


def _squares(output: Tensor, target: Tensor) -> Tensor:
    """Squared errors, targets and squared targets of every number: (3 D, N)."""
    dtype = sum_dtype(output.device)
    squares = _errors(output, target).to(dtype).square()
    target = target.to(dtype).reshape(squares.shape)
    return torch.cat([squares, target, target.square()], dim=1).t()


def _r2(_loss: float, means: Sequence[float]) -> float:
    """1 - squared error / variance of the target, averaged over the numbers; nan if one of them is constant."""
    size = len(means) // 3
    total = 0.0
    for error, mean, square in zip(means[:size], means[size : 2 * size], means[2 * size :], strict=True):
        variance = square - mean * mean
        total += 1.0 - error / variance if variance > _ROUNDING * square else float("nan")
    return total / size
