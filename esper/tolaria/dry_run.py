"""A dry run's work: a few steps, a module grown by force after the first, and what it cost."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from esper.contracts.decisions import AdaptationDecision
from esper.errors import SurgeryError
from esper.tolaria.finite import require_finite
from esper.tolaria.optim import set_learning_rates
from esper.tolaria.run import Run

__all__ = ["Rehearsal", "rehearse"]

_MAX_STEPS = 20
_MAX_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What a dry run found.

    Attributes:
        num_parameters: of the host, before it grows.
        device: what the steps ran on: `cuda:0`, `cpu`.
        total_steps: optimizer steps of the whole training.
        step_seconds: median time of a step; the first of all does not count.
        lines: what to show.
    """

    num_parameters: int
    device: str
    total_steps: int
    step_seconds: float
    lines: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """What the training's steps take; evaluation, growth and saving come on top."""
        return self.total_steps * self.step_seconds


def rehearse(run: Run) -> Rehearsal:
    """Do a step, grow a module at the first site that takes one, do more steps until their time is known.

    Raises:
        SurgeryError: nothing can be grown anywhere.
        DivergenceError: a loss, gradient or weight is not finite.
    """
    host = run.host_cost
    lines = [f"network    {host.num_parameters:,} parameters, {host.num_macs:,} MACs, {len(run.model.slots)} sites"]
    lines.append(f"training   {run.total_steps:,} steps of {run.config.dataset.batch_size} on {run.parts.device}")
    sites = [slot.site.name for slot in run.model.all_slots()]
    seconds: list[float] = []
    # The learning rate is defined for the training's steps only.
    num_steps = min(_MAX_STEPS, run.total_steps)
    while len(seconds) < 2 or run.ranks.first(lambda: len(seconds) < num_steps and sum(seconds) < _MAX_SECONDS):
        index, started = len(seconds), time.perf_counter()
        set_learning_rates(run.optimizer, run.schedule(index), step=index)
        run.growth.before_step()
        run.step.forward_backward_update(epoch=0, index=index % run.steps_per_epoch, step=index)
        run.state.global_step += 1
        loss = require_finite(run).loss  # waits for the device, so that the time is the step's
        seconds.append(time.perf_counter() - started)
        if index < 2:
            lines.append(f"step {index + 1}     loss {loss:.4f}")
        if index == 0 and sites:
            lines.append(f"growth     {_grow_somewhere(run, sites)}")
    return Rehearsal(
        num_parameters=host.num_parameters,
        device=str(run.parts.device),
        total_steps=run.total_steps,
        step_seconds=statistics.median(seconds[1:]),
        lines=tuple(lines),
    )


def _grow_somewhere(run: Run, sites: list[str]) -> str:
    for site in sites:
        if run.growth.apply(AdaptationDecision(should_adapt=True, site=site, reasoning="rehearsal")):
            return f"{run.model.recipe[0].blueprint_id} at {site}"
    raise SurgeryError("dry_run: nothing could be grown at any site; morphogenetic.blueprint* allow too little")
