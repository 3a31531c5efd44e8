"""Nothing that is not finite is saved, judged or grown upon."""

from __future__ import annotations

import torch
from torch import Tensor

from esper.contracts.lifecycle import SeedLifecycleState
from esper.errors import DivergenceError
from esper.tolaria.checkpoints import files as checkpoint
from esper.tolaria.run import Run
from esper.tolaria.sums import Reading, Window

__all__ = ["require_finite", "start_reading"]


def start_reading(run: Run, *, since: Tensor | None = None) -> Reading:
    """Begin to read the sums of the steps (since an earlier value of them), and whether the weights are finite."""
    # What incubates is not part of the network yet; if it breaks, it is culled when its incubation ends.
    apart = {
        id(p)
        for slot in run.model.all_slots()
        if slot.state is SeedLifecycleState.TRAINING
        for p in slot.kernel(slot.live_graft).parameters()
    }
    norms = torch.stack(torch._foreach_norm([p.detach() for p in run.model.parameters() if id(p) not in apart]))
    return run.step.sums.start_reading(norms.isfinite().all(), since=since)


def require_finite(run: Run, reading: Reading | None = None) -> Window:
    """The means of a reading, by default of one over the epoch so far; waits for the device.

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
    saved = checkpoint.find_checkpoints(run.checkpoint_dir)
    last = saved[0] if saved else run.config.checkpoint.resume_from
    good = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
    raise DivergenceError(
        f"loss, gradient or weights at step {step} are not finite; {grown}{good}; try a lower "
        f"optimization.learning_rate (now {run.config.optimization.learning_rate:g}) or set "
        "optimization.gradient_clip_norm"
    )
