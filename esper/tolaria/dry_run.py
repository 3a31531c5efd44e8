"""A dry run: a few steps, with a module forced to grow after the first, and the time they took."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from esper.contracts.decisions import AdaptationDecision
from esper.errors import SurgeryError
from esper.tolaria.loop import train_step
from esper.tolaria.metrics import require_finite
from esper.tolaria.run import Run

__all__ = ["DryRun", "dry_run"]

_MAX_STEPS = 20
_MAX_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What a dry run measured.

    Attributes:
        num_parameters: of the host, before it grew.
        device: where the steps ran: `cuda:0`, `cpu`.
        total_steps: optimizer steps of the whole training.
        step_seconds: median time of a step, without the first.
        notices: what the user should know about the data.
        lines: text for the user.
    """

    num_parameters: int
    device: str
    total_steps: int
    step_seconds: float
    notices: tuple[str, ...]
    lines: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Time of all steps of the training, without evaluation, growth and saving."""
        return self.total_steps * self.step_seconds


def dry_run(run: Run) -> DryRun:
    """Do a step, grow a module at the first site that accepts one, and do more steps to measure their time.

    Raises:
        SurgeryError: nothing can be grown anywhere.
        DivergenceError: a loss, gradient or weight is not finite.
    """
    host = run.host_cost
    lines = [f"network    {host.num_parameters:,} parameters, {host.num_macs:,} MACs, {len(run.model.slots)} sites"]
    lines += [f"data       {notice}" for notice in run.parts.splits.notices]
    lines += [f"adjusted   {text}" for text in run.config.adjusted]
    lines.append(f"training   {run.total_steps:,} steps of {run.config.dataset.batch_size} on {run.parts.device}")
    sites = [slot.site.name for slot in run.model.all_slots() if slot.has_room]
    seconds: list[float] = []
    num_steps = min(_MAX_STEPS, run.total_steps)  # the schedule is defined for these
    while len(seconds) < 2 or run.ranks.on_rank0(lambda: len(seconds) < num_steps and sum(seconds) < _MAX_SECONDS):
        index, started = len(seconds), time.perf_counter()
        train_step(run)
        run.state.step %= run.steps_per_epoch
        loss = require_finite(run).loss  # waits for the device
        seconds.append(time.perf_counter() - started)
        if index < 2:
            lines.append(f"step {index + 1}     loss {loss:.4f}")
        if index == 0 and sites:
            lines.append(f"growth     {_grow_somewhere(run, sites)}")
    return DryRun(
        num_parameters=host.num_parameters,
        device=str(run.parts.device),
        total_steps=run.total_steps,
        step_seconds=statistics.median(seconds[1:]),
        notices=run.parts.splits.notices,
        lines=tuple(lines),
    )


def _grow_somewhere(run: Run, sites: list[str]) -> str:
    for site in sites:
        if run.growth.apply(AdaptationDecision(should_adapt=True, site=site, reasoning="dry run")):
            return f"{run.model.recipe[-1].blueprint_id} at {site}"
    raise SurgeryError("dry_run: nothing could be grown at any site; morphogenetic.blueprint* allow too little")
