"""One growth of a run that several processes train: what its parts took, and whether all have the same weights then."""

from __future__ import annotations

import contextlib
import hashlib
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from benchmarks.stepping import timed_steps, train_steps, wait
from esper.contracts.decisions import AdaptationDecision
from esper.contracts.events import Event, Scored, SurgeryEnded
from esper.errors import SurgeryError
from esper.tolaria.growth.targets import first_blueprint
from esper.tolaria.run import Run

__all__ = ["Growth", "gathered", "growing_sites", "grown"]

T = TypeVar("T")

_WATCHED_STEPS = 12
"""Steps that are timed one by one after a growth; the last four give the speed that follows."""
_EAGER_STEPS = 3  # before the new graph is captured
_LATER_STEPS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """One growth; the pause begins when all processes have come to the end of an epoch and their devices are idle.

    Times are in seconds, of the process that took longest: the parts are not of the same one, and need not add up.

    Attributes:
        num_scored: images of the controller split, which process 0 scores alone.
        scoring_s: the scoring itself.
        deciding_s: scoring, decision, telling both to all, and comparing networks.
        broadcast_s: telling all processes a decision.
        surgery_s: checking and attaching the module, with a broadcast of its weights.
        agreeing_s: the rest of carrying it out: most of it is comparing what all have then.
        eager_s: the steps before the capture, in which libraries choose algorithms, less as many later steps.
        capture_s: the step that captures, less a later one.
        pause_s: until the first step is done that takes no more than 1.5 of those that follow.
        lost_s: everything until the last watched step, less as many steps at the speed that follows.
        step_s: a step of the grown network.
        hashes: of all weights, of each process, after the watched steps; the run itself compares them before.
        later_hashes: the same after more steps.
        is_finite: whether all weights are, then.
    """

    site: str
    blueprint_id: str
    num_scored: int
    scoring_s: float
    deciding_s: float
    broadcast_s: float
    surgery_s: float
    agreeing_s: float
    eager_s: float
    capture_s: float
    pause_s: float
    lost_s: float
    step_s: float
    hashes: list[str]
    later_hashes: list[str]
    is_finite: bool


def growing_sites(run: Run, num: int) -> list[str]:
    """Sites of the network where a module fits, spread over its depth."""
    fitting = []
    for slot in run.model.all_slots():
        with contextlib.suppress(SurgeryError):
            first_blueprint(slot, run.config.morphogenetic)
            fitting.append(slot.site.name)
    return [fitting[(2 * i + 1) * len(fitting) // (2 * num)] for i in range(num)]


def grown(run: Run, site: str, *, events: Sequence[Event]) -> Growth:
    """Grow the preferred module at a site, as the trainer does at the end of an epoch, and watch the steps that follow.

    Args:
        run: policy `never`, so that it scores its sites and grows what it is told to.
        site: where.
        events: what the run has journalled, to which it adds.
    """
    num_events = len(events)
    seconds = _timed_growth(run, AdaptationDecision(should_adapt=True, site=site))
    news = events[num_events:]
    (surgery,) = (event for event in news if isinstance(event, SurgeryEnded))
    seconds["scoring_s"] = sum(event.cost_s for event in news if isinstance(event, Scored))  # process 0 does it
    seconds["surgery_s"] = surgery.duration_s
    seconds["agreeing_s"] = seconds.pop("applying_s") - surgery.duration_s
    everyone = gathered(run, seconds)
    hashes = gathered(run, _hash(run))
    train_steps(run, _LATER_STEPS)
    return Growth(
        site=site,
        blueprint_id=surgery.blueprint_id,
        num_scored=len(run.parts.splits.controller),
        hashes=hashes,
        later_hashes=gathered(run, _hash(run)),
        is_finite=all(bool(p.isfinite().all()) for p in run.model.parameters()),
        **{name: max(one[name] for one in everyone) for name in seconds},
    )


def gathered(run: Run, value: T) -> list[T]:
    """The values of all processes that train a run, in each of them."""
    if run.ranks.size == 1:
        return [value]
    values = [value] * run.ranks.size
    dist.all_gather_object(values, value)
    return values


def _timed_growth(run: Run, decision: AdaptationDecision) -> dict[str, float]:
    """The end of an epoch, a growth, and the steps that follow, in seconds of this process."""
    run.state.epoch += 1
    run.state.step = 0
    wait(run)
    run.ranks.wait()
    ends = [time.perf_counter()]
    run.growth.end_of_epoch(is_last=False)
    wait(run)
    ends.append(time.perf_counter())
    agreed = run.ranks.first(lambda: decision)
    ends.append(time.perf_counter())
    if not run.growth.apply(agreed):
        raise RuntimeError(f"growing at {decision.site} was refused: see the journal")
    wait(run)
    ends.append(time.perf_counter())
    steps = []
    for _ in range(_WATCHED_STEPS):
        steps.append(timed_steps(run, 1))
        ends.append(time.perf_counter())
    step_s = statistics.median(steps[-4:])
    begun, decided, told, applied, *done = ends
    return {
        "deciding_s": decided - begun,
        "broadcast_s": told - decided,
        "applying_s": applied - told,
        "eager_s": sum(steps[:_EAGER_STEPS]) - _EAGER_STEPS * step_s,
        "capture_s": steps[_EAGER_STEPS] - step_s,
        "pause_s": next(end for end, step in zip(done, steps, strict=True) if step <= 1.5 * step_s) - begun,
        "lost_s": done[-1] - begun - _WATCHED_STEPS * step_s,
        "step_s": step_s,
    }


def _hash(run: Run) -> str:
    """SHA-256 over the names and the bits of all weights; statistics of batch norms are each process's own."""
    found = hashlib.sha256()
    for name, weight in run.model.named_parameters():
        found.update(name.encode())
        found.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()
