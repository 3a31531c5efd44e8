"""Train pilots as ordinary runs, here one after the other or as jobs, each from the trunk that others have left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from esper import stopping
from esper.configs import TolariaConfig
from esper.configs.compose import compose
from esper.configs.load import from_hydra
from esper.errors import RunError
from esper.launch.alone import alone
from esper.launch.run import run
from esper.planning.family import Family
from esper.planning.observations import Choice
from esper.planning.observed import FinishedRun, Trunk, finished_runs, longest_trunk
from esper.planning.pilots import Ladder, Pilot, trunk_before
from esper.planning.words import compute_words, percent_words
from esper.sweep.launch import launch
from esper.sweep.manifest import Member
from esper.sweep.queues.base import Queue
from esper.tracking.files import write_members

__all__ = ["describe", "ladder_of", "overrides_of", "run_pilots", "trunk_for", "without"]

_DECIDED = ("optimization.max_macs", "optimization.max_epochs", "rng_seed", "checkpoint.resume_from", "dry_run")
"""Settings of the command that a pilot has values of its own for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Training:
    """A run that is to be trained."""

    overrides: tuple[str, ...]
    config: TolariaConfig
    run_dir: Path


def ladder_of(known: Family) -> Ladder:
    """What pilots cost in a family."""
    optimization, growth = known.config.optimization, known.config.morphogenetic
    return Ladder(
        macs_per_epoch={network.size.name: network.size.macs_per_epoch for network in known.networks},
        warmup_epochs=optimization.warmup_epochs,
        decay=optimization.decay_fraction,
        share=known.share,
        growth_until=growth.growth_until,
        epochs_between=growth.adaptation_frequency,
    )


def overrides_of(
    choice: Choice, *, macs: float, seed: int, given: Sequence[str], known: Family, trunk: Trunk | None
) -> list[str]:
    """The overrides of `esper-train` that train a choice.

    Args:
        choice: what to train.
        macs: all that lead to it.
        seed: its `rng_seed`.
        given: overrides of the plan.
        known: the family.
        trunk: what it goes on from.
    """
    overrides = without(given, *_DECIDED)
    fraction = known.network(choice.size).fraction
    if choice.share is not None:
        own = {"morphogenetic.schedule_by": "compute", "morphogenetic.schedule_at": f"[{choice.share:g}]"}
        overrides = [*without(overrides, *own), *(f"{key}={value}" for key, value in own.items())]
    else:
        overrides = [*without(overrides, "morphogenetic"), f"morphogenetic={'replay' if fraction else 'off'}"]
        if fraction:
            overrides.append(f"morphogenetic.recipe_path={known.recipe_path}")
            if from_hydra(compose(overrides)).morphogenetic.policy != "replay":  # an experiment sets another
                overrides.append("morphogenetic.policy=replay")
        if 0 < fraction < 1:
            overrides.append(f"morphogenetic.recipe_fraction={fraction:g}")
    overrides += [f"optimization.max_macs={macs:.8g}", f"rng_seed={seed}"]
    return [*overrides, *([f"checkpoint.resume_from={_relative(trunk.path)}"] if trunk else [])]


def trunk_for(choice: Choice, *, macs: float, seed: int, runs: Sequence[FinishedRun], known: Family) -> Trunk | None:
    """The longest trunk that a training goes on from, before its learning rate decays and before it grows."""
    size = choice.size if choice.share is None else known.host.size.name
    before = macs * (1 - known.config.optimization.decay_fraction if choice.share is None else choice.share)
    return longest_trunk(runs, size=size, seed=seed, before=before)


def without(overrides: Sequence[str], *keys: str) -> list[str]:
    """The overrides but those of some settings or groups, and of all that these hold."""
    return [
        one
        for one in overrides
        if not any(_key(one) == key or _key(one).startswith((f"{key}.", f"{key}/")) for key in keys)
    ]


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def run_pilots(
    pilots: Sequence[Pilot],
    known: Family,
    *,
    given: Sequence[str],
    queue: Queue | None,
    tell: Callable[[str], None],
) -> tuple[list[FinishedRun], list[str]]:
    """Train the pilots that have not finished; returns all finished runs of the family, and the pilots' names.

    Args:
        pilots: in an order in which each comes after those that it goes on from.
        known: the family.
        given: overrides of the plan.
        queue: where they run as jobs; None: here, one after the other.
        tell: shows a line.

    Raises:
        EsperError: a run failed.
        SystemExit: a signal; the same command goes on.
    """
    ladder, tried, runs = ladder_of(known), list[Pilot](), list[FinishedRun]()
    known.write_recipe()
    while True:
        runs = finished_runs(known, read_before=runs)
        names = {pilot: name for pilot in pilots if (name := _name_of(pilot, runs, known)) is not None}
        pending = [pilot for pilot in pilots if pilot not in names]
        if not pending:
            return runs, list(names.values())
        if unmet := next((pilot for pilot in pending if pilot in tried), None):
            raise RunError(
                f"the pilot {describe(unmet, known)} finished, but not with that network, data and compute, or with a "
                "validation loss that is not finite"
            )
        ready = [pilot for pilot in pending if trunk_before(pilot, pilots, ladder=ladder) not in pending]
        ready = ready if queue is not None else ready[:1]
        trainings = [_training(pilot, runs, known, given) for pilot in ready]
        for number, pilot in enumerate(ready, start=len(names) + 1):
            tell(f"pilot {number} of {len(pilots)}: {describe(pilot, known)}")
        if queue is None:
            _train_here(trainings[0])
        else:
            _train_as_jobs(trainings, queue)
        tried += ready


def describe(pilot: Pilot, known: Family) -> str:
    """A pilot in words."""
    size = known.network(pilot.size).size
    grows = f" by growth at {percent_words(pilot.share)}" if pilot.share is not None else ""
    return f"{size.label}{grows}, {compute_words(pilot.macs)}, seed {pilot.seed}"


def _name_of(pilot: Pilot, runs: Sequence[FinishedRun], known: Family) -> str | None:
    """The finished run that trained what a pilot is to train, whatever it is called."""
    network, host = known.network(pilot.size), known.host
    step = network.size.macs_per_epoch / known.steps_per_epoch
    between = known.config.morphogenetic.adaptation_frequency * host.size.macs_per_epoch
    first = pilot.macs * (pilot.share or 0.0)
    for one in runs:
        grew_in_time = one.host_macs == 0 if pilot.share is None else -step <= one.host_macs - first <= between + step
        is_as_long = abs(one.result["total_macs"] - pilot.macs) <= step
        if (one.size, one.seed) == (pilot.size, pilot.seed) and grew_in_time and is_as_long:
            return one.run_dir.name
    return None


def _training(pilot: Pilot, runs: Sequence[FinishedRun], known: Family, given: Sequence[str]) -> _Training:
    choice = Choice(size=pilot.size, share=pilot.share)
    trunk = trunk_for(choice, macs=pilot.macs, seed=pilot.seed, runs=runs, known=known)
    overrides = overrides_of(choice, macs=pilot.macs, seed=pilot.seed, given=given, known=known, trunk=trunk)
    overrides.append("checkpoint.save_trunk=true")
    if not any(_key(one) == "logging.log_level" for one in overrides):
        overrides.append("logging.log_level=WARNING")
    cfg = compose(overrides)
    return _Training(overrides=tuple(overrides), config=from_hydra(cfg), run_dir=Path(cfg.hydra.run.dir))


def _train_here(training: _Training) -> None:
    with stopping.handled(), alone():
        outcome = run(training.config, training.run_dir)
    if outcome.exit_code:
        raise SystemExit(outcome.exit_code)


def _train_as_jobs(trainings: Sequence[_Training], queue: Queue) -> None:
    members = [
        Member(
            sweep_dir=training.run_dir.parent.absolute(),
            name=training.run_dir.name,
            overrides=training.overrides,
            cwd=str(Path.cwd()),
            siblings={},
        )
        for training in trainings
    ]
    write_members(members[0].sweep_dir, {member.name: member.overrides for member in members})
    configs = [training.config for training in trainings]
    states = launch(list(zip(members, configs, strict=True)), queue)
    failed = {name: state for name, state in states.items() if state.state != "finished"}
    for name, state in failed.items():
        sys.stderr.write(f"error: {name}: {state.reason or state.state}\n")
    if failed:
        raise RunError(f"{len(failed)} of {len(states)} pilots did not finish; the same command goes on with them")


def _relative(path: Path) -> Path:
    """As seen from the working directory, if it is inside."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
