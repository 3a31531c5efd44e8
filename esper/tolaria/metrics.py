"""Metrics of training steps: read from the device without waiting, checked to be finite, and logged."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from esper.contracts.events import StepLogged
from esper.contracts.lifecycle import SeedLifecycleState
from esper.devices import memory_bytes
from esper.errors import DivergenceError
from esper.kasmina.modes import can_train
from esper.tolaria.checkpoints.files import find_checkpoints
from esper.tolaria.run import Run
from esper.tolaria.sums import Mark, Reading, Window

__all__ = ["StepLog", "require_finite", "start_reading"]


def start_reading(run: Run, *, since: Tensor | None = None) -> Reading:
    """Start to read the epoch's metric sums (since an earlier value), and whether all weights are finite."""
    # A module in incubation is not part of the network yet; if it diverges, it is culled when its incubation ends.
    incubating = {
        id(p)
        for slot in run.model.all_slots()
        if slot.state is SeedLifecycleState.TRAINING
        for p in slot.kernel(slot.live_graft).parameters()
    }
    weights = [p.detach() for p in run.model.parameters() if can_train(p) and id(p) not in incubating]
    norms = torch.stack(torch._foreach_norm(weights))
    return run.step.sums.start_reading(norms.isfinite().all(), since=since)


def require_finite(run: Run, reading: Reading | None = None) -> Window:
    """The means of a reading, by default of the epoch so far; waits for the device.

    Raises:
        DivergenceError: a loss or gradient of the run, or a weight, is not finite.
    """
    window, are_finite = (reading or start_reading(run)).window()
    if window.first_bad_step is None and are_finite:
        return window
    step = run.state.global_step - 1 if window.first_bad_step is None else window.first_bad_step
    recipe = run.model.recipe
    grown = (
        f"last growth: {recipe[-1].blueprint_id} at {recipe[-1].site}, step {recipe[-1].born_step}; " if recipe else ""
    )
    run.checkpoint_writer.wait()  # a checkpoint that cannot be written must not hide this
    saved = find_checkpoints(run.checkpoint_dir)
    last = saved[0] if saved else run.config.checkpoint.resume_from
    good = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
    raise DivergenceError(
        f"loss, gradient or weights at step {step} are not finite; {grown}{good}; try a lower "
        f"optimization.learning_rate (now {run.config.optimization.learning_rate:g}) or set "
        "optimization.gradient_clip_norm"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    reading: Reading
    since: Mark
    step: int
    learning_rate: float


class StepLog:
    """Log lines of an epoch's training steps.

    On CUDA a line is written when the next one begins, or at `flush`: its metrics are copied to the host while the
    device does other steps. On a CPU it is written at once.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._line: _Line | None = None
        self._last = Mark(run.parts.device)

    def begin(self) -> None:
        """Write the last line, and begin one about the steps since then.

        Raises:
            DivergenceError: a loss, gradient or weight is not finite.
        """
        self.flush()
        run = self._run
        reading = start_reading(run, since=run.last_read)
        run.last_read.copy_(run.step.sums.epoch)
        step = run.state.global_step
        self._line = _Line(reading=reading, since=self._last, step=step, learning_rate=run.schedule(-1))
        self._last = reading.mark
        if run.parts.device.type != "cuda":
            self.flush()

    def flush(self) -> None:
        """Write the line that was begun, if any.

        Raises:
            DivergenceError: see `begin`.
        """
        line, self._line = self._line, None
        if line is None:
            return
        run = self._run
        window = require_finite(run, line.reading)
        seconds = line.reading.mark.seconds_since(line.since)
        spec = run.parts.spec
        examples_per_s = window.num_steps * run.config.dataset.batch_size / seconds
        tokens = spec.inputs[0] if spec.dtype is torch.int64 else None
        run.journal.write(
            StepLogged(
                step=line.step,
                epoch=run.state.epoch,
                loss=window.loss,
                metrics=dict(window.metrics),
                learning_rate=line.learning_rate,
                grad_norm=window.grad_norm,
                images_per_s=examples_per_s,
                tokens_per_s=None if tokens is None else examples_per_s * tokens,
                memory_bytes=memory_bytes(run.parts.device),
            )
        )
