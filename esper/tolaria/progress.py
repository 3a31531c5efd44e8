"""Tell those who watch a training where it is: its step at once, the loss when it has arrived from the device."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable

from torch import Tensor

from esper.contracts.progress import Progress
from esper.tolaria.run import Run
from esper.tolaria.sums import Reading

__all__ = ["OnProgress", "ProgressReporter"]

OnProgress = Callable[[Progress], None]

logger = logging.getLogger(__name__)

_INTERVAL_S = 0.25
_LOSS_INTERVAL_S = 1.0


class ProgressReporter:
    """Calls `on_progress` in the training thread: when the training does something else, and a few times a second.

    On CUDA the loss is copied to the host while the device goes on, at most once a second, and told when it has
    arrived: nothing waits for it.
    """

    def __init__(self, on_progress: OnProgress | None) -> None:
        self._on_progress = on_progress
        self._progress = Progress(doing="starting")
        self._due_s = self._loss_due_s = 0.0
        self._since: Tensor | None = None  # epoch sums at the last reading, on the device
        self._reading: Reading | None = None

    def doing(self, what: str) -> None:
        """Tell what the training does now."""
        self._due_s = 0.0
        self._tell(doing=what)

    def begin_epoch(self, run: Run) -> None:
        """Begin to report the steps of an epoch, or of the rest of one."""
        self._reading = None
        if self._on_progress is not None:
            self._since = run.step.sums.epoch.clone()
            self._tell(doing="training", step=run.state.global_step, total_steps=run.total_steps)

    def after_step(self, run: Run) -> None:
        """Tell the step and, if it has arrived, the loss, unless that was done a moment ago."""
        if self._on_progress is None or self._since is None or (now := time.monotonic()) < self._due_s:
            return
        self._due_s = now + _INTERVAL_S
        if self._reading is None and now >= self._loss_due_s:
            self._loss_due_s = now + _LOSS_INTERVAL_S
            sums = run.step.sums
            self._reading = sums.start_reading(sums.bad_step < 0, since=self._since)
            self._since.copy_(sums.epoch)
        if self._reading is not None and self._reading.mark.is_reached:
            window, _ = self._reading.window()
            self._reading = None
            self._progress = dataclasses.replace(self._progress, loss=window.loss, metrics=dict(window.metrics))
        self._tell(doing="training", step=run.state.global_step)

    def _tell(self, **changes: str | int) -> None:
        self._progress = dataclasses.replace(self._progress, **changes)  # type: ignore[arg-type]
        if self._on_progress is None:
            return
        try:
            self._on_progress(self._progress)
        except Exception:  # a display must not stop the training, see `Journal.subscribe`
            logger.exception("a listener of the progress failed and was removed")
            self._on_progress = None
