"""Sums of metrics over training steps: on the device, and copied to the host without waiting."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from esper import turns
from esper.devices import sum_dtype
from esper.tasks import Metric, as_figures, num_values

__all__ = ["Mark", "Reading", "StepSums", "Window"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Means over some steps.

    `first_bad_step` is the first step of the run whose loss or gradient was not finite.
    """

    loss: float
    metrics: Mapping[str, float]
    grad_norm: float
    num_steps: int
    first_bad_step: int | None


class Mark:
    """A point in the device's stream of work; on a CPU, a point in time."""

    def __init__(self, device: torch.device) -> None:
        self._event: torch.cuda.Event | None = None
        self._time = time.monotonic()
        if device.type == "cuda":
            # Of several runs, those that wait leave the cores to the one that has the turn.
            is_blocking = turns.current() is not None
            self._event = torch.cuda.Event(enable_timing=True, blocking=is_blocking)  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(device))

    @property
    def is_reached(self) -> bool:
        """Whether the device has reached it; does not wait."""
        return self._event is None or bool(self._event.query())  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        """Wait until the device has reached it."""
        if self._event is not None:
            turns.wait_for(self._event)

    def seconds_since(self, earlier: Mark) -> float:
        """Seconds between two marks on the device; waits for it."""
        if self._event is None or earlier._event is None:
            return self._time - earlier._time
        self.wait()
        return float(earlier._event.elapsed_time(self._event)) / 1000.0


class Reading:
    """An asynchronous copy of metrics from the device; only `window` waits for it.

    Args:
        metrics: what is measured besides the loss.
        values: the sums of `StepSums`, and the first bad step; (K + 4,) on the device.
        are_finite: whether all weights are finite, 0-dim bool on the device.
    """

    def __init__(self, metrics: Sequence[Metric], values: Tensor, are_finite: Tensor) -> None:
        self._metrics = metrics
        values = torch.cat([values, are_finite.to(values.dtype)[None]])
        self._host = torch.empty(len(values), dtype=values.dtype, pin_memory=values.is_cuda)
        self._host.copy_(values, non_blocking=values.is_cuda)  # only CUDA's copies have an event to wait for
        self.mark = Mark(values.device)

    def window(self) -> tuple[Window, bool]:
        """The means, and whether all weights are finite; waits for the device."""
        self.mark.wait()
        loss, *sums, grad_norm, steps, bad_step, are_finite = self._host.tolist()
        count = max(steps, 1.0)
        window = Window(
            loss=loss / count,
            metrics=as_figures(self._metrics, loss / count, [value / count for value in sums]),
            grad_norm=grad_norm / count,
            num_steps=int(steps),
            first_bad_step=int(bad_step) if bad_step >= 0 else None,
        )
        return window, bool(are_finite)


class StepSums:
    """Sums over steps, on the device.

    Args:
        metrics: what is measured besides the loss, from K averages.
        device: where.

    Attributes:
        epoch: sums of (loss, averages, gradient norm, 1) over the steps of the epoch, (K + 3,).
        bad_step: first step of the run whose loss or gradient was not finite, or -1.
    """

    def __init__(self, metrics: Sequence[Metric], device: torch.device) -> None:
        self._metrics = metrics
        self.epoch = torch.zeros(num_values(metrics) + 3, dtype=sum_dtype(device), device=device)
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=device)

    def start_reading(self, are_finite: Tensor, *, since: Tensor | None = None) -> Reading:
        """Start to read the means over the epoch, or since an earlier value of `epoch`."""
        sums = self.epoch - since if since is not None else self.epoch
        return Reading(self._metrics, torch.cat([sums, self.bad_step.to(sums.dtype)[None]]), are_finite)
