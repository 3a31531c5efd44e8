"""How long does growing interrupt training?

A run grows at one site after another, with one blueprint after another. The clock starts when a decision is applied,
with an idle device, and each step after it is synchronised. Reported are the time to the end of the first step of the
grown network; to the first replay of its captured step (without capture: the first step again); and the time lost in
total, compared with as many steps at the later speed. Then the module is judged and the sites are scored, as at the end
of an epoch; the journal records how long that takes.

    python benchmarks/growth_latency.py --out growth_latency.json [--compiled-growths 0]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.measuring import environment, median_and_range, table, verdict, write_json
from benchmarks.places import new_file
from benchmarks.stepping import configuration, opened, own_stream, timed_steps, wait
from esper import urza
from esper.configs import MorphogeneticConfig
from esper.contracts.decisions import AdaptationDecision
from esper.contracts.events import Event, Judged, Scored
from esper.tolaria.run import Run

GOAL_S = 1.0
_WARMUP_STEPS = 20
_TIMED_STEPS = 12
"""Steps timed singly after a growth; the last four give the later speed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """One growth; all times in seconds from the decision.

    Attributes:
        applied_s: until the decision was applied.
        first_step_s: until the end of the grown network's first step.
        replayed_s: until the end of a step that took at most 1.5 later steps.
        lost_s: total, minus as many steps at the later speed.
        step_s: a later step of the grown network.
    """

    site: str
    blueprint_id: str
    applied_s: float
    first_step_s: float
    replayed_s: float
    lost_s: float
    step_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """The growths of one run, and the seconds of scoring and judging at its ends of epochs."""

    compiled: bool
    planned: int
    pauses: list[Pause]
    scoring_s: list[float]
    judging_s: list[float]


def main(arguments: Sequence[str] | None = None) -> None:
    """Grow, print the tables, write the JSON file."""
    options = _options().parse_args(arguments)
    deadline = time.monotonic() + options.budget_seconds
    own_stream()
    found: list[Series] = []
    with tempfile.TemporaryDirectory(prefix="growth-latency-") as folder:
        for compiled, num_growths in ((False, options.growths), (True, options.compiled_growths)):
            if num_growths:
                found.append(_grow(options, compiled=compiled, num_growths=num_growths, deadline=deadline, in_=folder))
                write_json(options.out, {"series": found})
                print(table([_growth(found[-1], pause) for pause in found[-1].pauses]) + "\n")
                print(table([_summary(found[-1])]) + "\n")
    print(environment())
    plain = [pause.replayed_s for one in found if not one.compiled for pause in one.pauses]
    print(verdict(f"median <= {GOAL_S:g} s, uncompiled", statistics.median(plain) <= GOAL_S if plain else None))


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=new_file, required=True, help="JSON file for the results")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cuda", "cpu"))
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--growths", type=int, default=12, help="growths of the uncompiled run")
    parser.add_argument("--compiled-growths", type=int, default=6, help="growths of the run with compile_model=true")
    parser.add_argument("--budget-seconds", type=float, default=300.0, help="start no growth after this time")
    return parser


def _grow(options: argparse.Namespace, *, compiled: bool, num_growths: int, deadline: float, in_: str) -> Series:
    config = configuration(
        model=options.model,
        batch_size=options.batch_size,
        num_examples=options.images,
        image_size=32,
        device=options.device,
        morphogenetic=MorphogeneticConfig(policy="never", holding_epochs=1, adaptation_cooldown=0),
        compile_model=compiled,
    )
    series = Series(compiled=compiled, planned=num_growths, pauses=[], scoring_s=[], judging_s=[])

    def listen(event: Event) -> None:
        if isinstance(event, Scored):
            series.scoring_s.append(event.cost_s)
        elif isinstance(event, Judged):
            series.judging_s.append(event.cost_s)

    with opened(config, Path(in_) / f"compiled-{compiled}", listeners=[listen]) as run:
        timed_steps(run, _WARMUP_STEPS)
        for decision in itertools.islice(_decisions(run), num_growths):
            if time.monotonic() > deadline:
                break
            series.pauses.append(_pause(run, decision))
            run.state.epoch += 1
            run.state.step = 0
            run.growth.end_of_epoch(is_last=False)
            timed_steps(run, _WARMUP_STEPS)
    return series


def _decisions(run: Run) -> Iterator[AdaptationDecision]:
    """Each site once; each kind of site cycles through the blueprints that fit it."""
    queues: dict[str, deque[str]] = {}
    for slot in run.model.all_slots():
        site, config = slot.site, run.config.morphogenetic
        blueprints = urza.allowed(config, site.kind, site.in_shape, site.out_shape)
        allowed = {blueprint.blueprint_id for blueprint in blueprints}
        queue = queues.setdefault(site.kind, deque(blueprint.blueprint_id for blueprint in blueprints))
        queue.extend(sorted(allowed - set(queue)))
        for _ in range(len(queue)):
            queue.rotate(-1)
            if queue[-1] in allowed:
                yield AdaptationDecision(should_adapt=True, site=site.name, blueprint_id=queue[-1])
                break


def _pause(run: Run, decision: AdaptationDecision) -> Pause:
    """Apply a decision and time the steps after it."""
    wait(run)
    started = time.perf_counter()
    if not run.growth.apply(decision):
        raise RuntimeError(f"{decision.blueprint_id} at {decision.site} was refused: see the journal")
    applied_s = time.perf_counter() - started
    ends, steps = [], []
    for _ in range(_TIMED_STEPS):
        steps.append(timed_steps(run, 1))
        ends.append(time.perf_counter() - started)
    step_s = statistics.median(steps[-4:])
    assert decision.site is not None
    assert decision.blueprint_id is not None
    return Pause(
        site=decision.site,
        blueprint_id=decision.blueprint_id,
        applied_s=applied_s,
        first_step_s=ends[0],
        replayed_s=next(end for end, step in zip(ends, steps, strict=True) if step <= 1.5 * step_s),
        lost_s=ends[-1] - _TIMED_STEPS * step_s,
        step_s=step_s,
    )


def _growth(series: Series, pause: Pause) -> dict[str, object]:
    return {
        "site": pause.site,
        "blueprint": pause.blueprint_id,
        "compiled": "yes" if series.compiled else "no",
        "carried out, s": f"{pause.applied_s:.3f}",
        "first step done, s": f"{pause.first_step_s:.3f}",
        "replayed, s": f"{pause.replayed_s:.3f}",
        "time lost, s": f"{pause.lost_s:.3f}",
    }


def _summary(series: Series) -> dict[str, object]:
    pauses = series.pauses
    return {
        "median (range), s": "compiled" if series.compiled else "uncompiled",
        "n": f"{len(pauses)} of {series.planned}",
        "first step done": median_and_range([pause.first_step_s for pause in pauses]),
        "replayed": median_and_range([pause.replayed_s for pause in pauses]),
        "time lost": median_and_range([pause.lost_s for pause in pauses]),
        "scoring": median_and_range(series.scoring_s),
        "judging": median_and_range(series.judging_s),
    }


if __name__ == "__main__":
    main()
