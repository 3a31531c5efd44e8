"""Log lines of training steps, written without making the device wait."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch

from esper.contracts.events import StepLogged
from esper.tolaria.finite import require_finite, start_reading
from esper.tolaria.run import Run
from esper.tolaria.sums import Mark, Reading

__all__ = ["StepLog"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    reading: Reading
    since: Mark
    step: int
    learning_rate: float


class StepLog:
    """The log lines of what is trained of an epoch in one go.

    On CUDA a line is written when the next one begins, or at `flush`: by then its figures have crossed to the host
    while the device had other steps to do. On a CPU it is written at once.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._line: _Line | None = None
        self._last = Mark(run.parts.device)

    def begin(self) -> None:
        """Begin a line about the steps since the last one, and write that.

        Raises:
            DivergenceError: a loss, gradient or weight is not finite.
        """
        self.flush()
        run = self._run
        reading = start_reading(run, since=run.last_read)
        run.last_read.copy_(run.step.sums.epoch)
        step = run.state.global_step
        self._line = _Line(reading=reading, since=self._last, step=step, learning_rate=run.schedule(step - 1))
        self._last = reading.mark
        if run.parts.device.type != "cuda":
            self.flush()

    def flush(self) -> None:
        """Write the line that was begun.

        Raises:
            DivergenceError: see `begin`.
        """
        line, self._line = self._line, None
        if line is None:
            return
        run = self._run
        window = require_finite(run, line.reading)
        seconds = line.reading.mark.seconds_since(line.since)
        on_cuda = run.parts.device.type == "cuda"
        run.journal.write(
            StepLogged(
                step=line.step,
                epoch=run.state.epoch,
                loss=window.loss,
                accuracy=window.accuracy,
                learning_rate=line.learning_rate,
                grad_norm=window.grad_norm,
                images_per_s=window.num_steps * run.config.dataset.batch_size / seconds,
                memory_bytes=torch.cuda.max_memory_allocated() if on_cuda else psutil.Process().memory_info().rss,
            )
        )
