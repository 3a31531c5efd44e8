"""A growth on several ranks: the time of its parts, and whether all ranks have equal weights afterwards."""

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

_TIMED_STEPS = 12
"""Steps timed singly after a growth; the last four give the later speed."""
_EAGER_STEPS = 3  # before capture
_LATER_STEPS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """One growth; its clock starts when all ranks have ended an epoch and their devices are idle.

    Times are in seconds and the maximum over ranks; different parts may come from different ranks and need not add up.

    Attributes:
        num_scored: images of the controller split, scored by rank 0.
        scoring_s: scoring alone.
        deciding_s: scoring, decision, their broadcast, and comparing networks.
        broadcast_s: broadcast of a decision.
        surgery_s: checking and attaching the module, with a broadcast of its weights.
        agreeing_s: the rest of applying the decision, mostly comparing networks.
        eager_s: the steps before capture, in which libraries choose algorithms, minus as many later steps.
        capture_s: the capturing step, minus a later one.
        pause_s: until the end of the first step that takes at most 1.5 later steps.
        lost_s: until the end of the last timed step, minus as many later steps.
        step_s: a later step of the grown network.
        hashes: of all weights, by rank, after the timed steps.
        later_hashes: the same after more steps.
        is_finite: whether all weights are finite at the end.
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
    """Sites where a module fits, spread over the network's depth."""
    fitting = []
    for slot in run.model.all_slots():
        with contextlib.suppress(SurgeryError):
            first_blueprint(run.life, slot)
            fitting.append(slot.site.name)
    return [fitting[(2 * i + 1) * len(fitting) // (2 * num)] for i in range(num)]


def grown(run: Run, site: str, *, events: Sequence[Event]) -> Growth:
    """Grow the preferred blueprint at a site, as the trainer does at the end of an epoch, and time the next steps.

    Args:
        run: of policy `never`, which scores its sites.
        events: the run's events so far; the run appends to it.
    """
    num_events = len(events)
    seconds = _timed_growth(run, AdaptationDecision(should_adapt=True, site=site))
    news = events[num_events:]
    (surgery,) = (event for event in news if isinstance(event, SurgeryEnded))
    seconds["scoring_s"] = sum(event.cost_s for event in news if isinstance(event, Scored))  # on rank 0
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
    """All-gather: the values of all ranks of a run."""
    if run.ranks.size == 1:
        return [value]
    values = [value] * run.ranks.size
    dist.all_gather_object(values, value)
    return values


def _timed_growth(run: Run, decision: AdaptationDecision) -> dict[str, float]:
    """An end of epoch, a growth and the next steps, in seconds of this rank."""
    run.state.epoch += 1
    run.state.step = 0
    wait(run)
    run.ranks.barrier()
    ends = [time.perf_counter()]
    run.growth.end_of_epoch(is_last=False)
    wait(run)
    ends.append(time.perf_counter())
    agreed = run.ranks.on_rank0(lambda: decision)
    ends.append(time.perf_counter())
    if not run.growth.apply(agreed):
        raise RuntimeError(f"growing at {decision.site} was refused: see the journal")
    wait(run)
    ends.append(time.perf_counter())
    steps = []
    for _ in range(_TIMED_STEPS):
        steps.append(timed_steps(run, 1))
        ends.append(time.perf_counter())
    step_s = statistics.median(steps[-4:])
    begun, decided, received, applied, *done = ends
    return {
        "deciding_s": decided - begun,
        "broadcast_s": received - decided,
        "applying_s": applied - received,
        "eager_s": sum(steps[:_EAGER_STEPS]) - _EAGER_STEPS * step_s,
        "capture_s": steps[_EAGER_STEPS] - step_s,
        "pause_s": next(end for end, step in zip(done, steps, strict=True) if step <= 1.5 * step_s) - begun,
        "lost_s": done[-1] - begun - _TIMED_STEPS * step_s,
        "step_s": step_s,
    }


def _hash(run: Run) -> str:
    """SHA-256 of the names and bits of all weights, without batch-norm statistics, which differ by rank."""
    digest = hashlib.sha256()
    for name, weight in run.model.named_parameters():
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
