"""What training steps leave behind: sums on the device, and how they reach the host."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Mark", "Reading", "StepSums", "Window"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Means over some steps.

    `first_bad_step` is the first step of the run whose loss or gradient was not finite.
    """

    loss: float
    accuracy: float
    grad_norm: float
    num_steps: int
    first_bad_step: int | None


class Mark:
    """A point in the device's work; on a CPU, in time."""

    def __init__(self, device: torch.device) -> None:
        self._event: torch.cuda.Event | None = None
        self._time = time.monotonic()
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._event.record()

    def wait(self) -> None:
        """Wait until the device has come here."""
        if self._event is not None:
            self._event.synchronize()

    def seconds_since(self, earlier: Mark) -> float:
        """Seconds of the device's time between two marks; waits."""
        if self._event is None or earlier._event is None:
            return self._time - earlier._time
        self.wait()
        return float(earlier._event.elapsed_time(self._event)) / 1000.0


class Reading:
    """Figures on their way from the device; nothing waits for them before they are asked for.

    Args:
        values: loss, accuracy, gradient norm, steps (sums), first bad step; float64 (5,) on the device.
        are_finite: whether all weights are finite, 0-dim bool there.
    """

    def __init__(self, values: Tensor, are_finite: Tensor) -> None:
        joined = torch.cat([values, are_finite.double()[None]])
        self._host = torch.empty(6, dtype=torch.float64, pin_memory=joined.is_cuda)
        self._host.copy_(joined, non_blocking=True)
        self.mark = Mark(joined.device)

    def window(self) -> tuple[Window, bool]:
        """The means, and whether all weights are finite; waits."""
        self.mark.wait()
        loss, accuracy, grad_norm, steps, bad_step, are_finite = self._host.tolist()
        count = max(steps, 1.0)
        window = Window(
            loss=loss / count,
            accuracy=accuracy / count,
            grad_norm=grad_norm / count,
            num_steps=int(steps),
            first_bad_step=int(bad_step) if bad_step >= 0 else None,
        )
        return window, bool(are_finite)


class StepSums:
    """Sums over steps, on the device.

    `epoch` holds (loss, hits / batch, gradient norm, steps) since the epoch began, `bad_step` the first bad step
    of the run or -1.
    """

    def __init__(self, device: torch.device) -> None:
        self.epoch = torch.zeros(4, dtype=torch.float64, device=device)
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=device)

    def start_reading(self, are_finite: Tensor, *, since: Tensor | None = None) -> Reading:
        """Begin to read the means since the epoch began, or since an earlier value of `epoch`."""
        sums = self.epoch - since if since is not None else self.epoch
        return Reading(torch.cat([sums, self.bad_step.double()[None]]), are_finite)
