"""`esper plan`: train the pilots, judge what they showed, and say what to train."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from omegaconf import DictConfig
from pydantic import Field, TypeAdapter

from esper.configs.compose import compose
from esper.configs.load import from_hydra
from esper.configs.rank_env import rank_env
from esper.errors import ConfigError, RunError
from esper.files import read_json, write_atomically
from esper.launch.dry_run import dry_run
from esper.launch.planned import Decision
from esper.planning import check, outcomes, page, record, table
from esper.planning.budget import PlanBudget
from esper.planning.family import Family, read_family
from esper.planning.judge import judge
from esper.planning.observations import Choice, Question
from esper.planning.observed import FinishedRun, observations, spent_by
from esper.planning.pilots import choose_pilots, cost_of
from esper.planning.record import PlanRecord
from esper.planning.trainings import describe, ladder_of, overrides_of, run_pilots, trunk_for, without
from esper.planning.words import compute_words
from esper.simic import growth
from esper.simic.growth import GrowthPolicy
from esper.sweep.launchers import QUEUES, queue_of
from esper.sweep.queues.base import Queue
from esper.terminal import table_console
from esper.tracking.formatting import number

__all__ = ["main"]

_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Shares of the compute at which growing is considered, besides that of the configuration."""
_SPEED = "plan_speed.json"
"""MACs per second by family, measured for --hours before the first pilot: the same command chooses the same pilots."""
_SPEEDS = TypeAdapter(dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]])
_MEASURED_ANEW = 1.25
"""Factor on hours that are advised after a dry run, which keeps no speed: the next command may measure a higher one."""


def main(options: argparse.Namespace) -> int:
    """Plan a training, or check a plan; returns the exit code.

    Args:
        options: of the command line, see `add_plan`.

    Raises:
        EsperError: bad input, or a pilot failed.
        SystemExit: a signal; the same command goes on.
    """
    if options.check is not None:
        return _check(options.check)
    if rank_env().size > 1:
        raise ConfigError("esper plan: is one process; for pilots on several GPUs, add hydra/launcher=slurm or local")
    policy = None if options.policy is None else growth.read(options.policy)
    if policy is not None and not policy.is_active:
        _tell(f"{options.policy}: {policy.verdict}")
    given = list(options.overrides)
    if options.experiment is not None:
        given = [*without(given, "experiment_name"), f"experiment_name={options.experiment}"]
    with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
        cfg = compose(given)
        queue, is_dry = _queue(cfg), from_hydra(cfg).dry_run
        given = without(given, "hydra", "dry_run")
        known = read_family(given, fractions=options.sizes)
        ladder, budget = ladder_of(known), _budget(options, known, given, is_dry=is_dry)
        pilots = choose_pilots(ladder, budget=budget, pilot_share=options.pilot_share, seed=known.config.rng_seed)
        price = f"{number(cost_of(pilots, ladder))} of {compute_words(budget.macs)}"
        _tell(f"{len(pilots)} pilots, {price}, in {known.folder}")
        if is_dry:
            _tell("\n".join(f"  {describe(pilot, known)}" for pilot in pilots))
            return 0
        runs, names = run_pilots(pilots, known, given=given, queue=queue, tell=_tell)
    made = _record(known, runs, names, given=given, macs=budget.macs, hours=options.hours, policy=policy)
    record.write(made, known.folder / "plan.json")
    page.write(made, known.folder / "plan.html")
    if options.json:
        sys.stdout.write(record.as_text(made))
        return 0
    console = table_console()
    console.print()
    for part in table.printed(made.plan, columns=console.width, command=made.command):
        console.print(part)
    _tell(f"\n{known.folder / 'plan.html'}")
    return 0


def _check(folder: Path) -> int:
    """Print what the plan in a folder predicted, and what was found in the runs that have finished there since."""
    made, found = outcomes.read_outcomes(folder)
    checked = check.check(made, found)
    if not checked:
        raise RunError(f"--check {folder}: no run of this plan has finished since; train what it recommends first")
    console = table_console()
    for part in check.printed(checked, made.plan):
        console.print(part)
    return 0


def _queue(cfg: DictConfig) -> Queue | None:
    """Where pilots run as jobs, as `hydra/launcher` says; None: in this process."""
    settings = cfg.hydra
    launcher = settings.runtime.choices["hydra/launcher"]
    if launcher == "basic":
        return None
    if launcher not in QUEUES:
        raise ConfigError(f"hydra/launcher={launcher}: esper plan runs pilots with {' or '.join(QUEUES)}, or without")
    queue = queue_of(launcher, settings.launcher)
    queue.require()
    return queue


def _budget(options: argparse.Namespace, known: Family, given: Sequence[str], *, is_dry: bool) -> PlanBudget:
    """What may be spent; an hour is about as many MACs as for the host."""
    optimization = known.config.optimization
    if options.compute is not None:
        return PlanBudget(amount=options.compute)
    if options.hours is not None:
        speed = _macs_per_second(known, given, is_kept=not is_dry)
        slack = _MEASURED_ANEW if is_dry else 1.0
        return PlanBudget(
            amount=options.hours, macs_per_unit=3600 * speed, option="--hours", unit="hours of the host", slack=slack
        )
    if options.epochs is None and optimization.max_macs is not None:
        return PlanBudget(amount=optimization.max_macs, setting="optimization.max_macs")
    return PlanBudget(
        amount=options.epochs or optimization.max_epochs,
        macs_per_unit=known.final.size.macs_per_epoch,
        option="--epochs",
        unit="epochs",
        setting="optimization.max_epochs" if options.epochs is None else None,
    )


def _macs_per_second(known: Family, given: Sequence[str], *, is_kept: bool) -> float:
    """The speed of the host: measured in a few steps, or as the folder says that it was."""
    file = known.folder / _SPEED
    try:
        measured = read_json(file, _SPEEDS)
    except FileNotFoundError:
        measured = {}
    except RunError as error:
        raise RunError(f"{error}; remove it, and the speed is measured again") from None
    if known.digest not in measured:
        macs = known.config.optimization.max_epochs * known.host.size.macs_per_epoch
        overrides = overrides_of(
            Choice(size=known.host.size.name),
            macs=macs,
            seed=known.config.rng_seed,
            given=given,
            known=known,
            trunk=None,
        )
        step_seconds = dry_run(from_hydra(compose(overrides)), known.folder / "speed").step_seconds
        step_macs = known.host.size.macs_per_epoch / known.steps_per_epoch
        measured[known.digest] = step_macs / step_seconds
        if is_kept:
            known.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps(measured, indent=1) + "\n")
    return measured[known.digest]


def _record(
    known: Family,
    runs: Sequence[FinishedRun],
    pilots: Sequence[str],
    *,
    given: Sequence[str],
    macs: float,
    hours: float | None,
    policy: GrowthPolicy | None,
) -> PlanRecord:
    """Judge what was observed, and say how to train what is recommended."""
    seen = observations(runs, known, pilots=pilots)
    plan = judge(_question(known, runs, pilots, macs=macs, hours=hours), seen, policy=policy)
    choice, budget, seed = plan.recommended, float(f"{plan.chosen.macs:.4g}"), known.config.rng_seed
    trunk = trunk_for(choice, macs=budget, seed=seed, runs=runs, known=known)
    overrides = overrides_of(choice, macs=budget, seed=seed, given=given, known=known, trunk=trunk)
    decision = Decision(
        family=known.digest,
        overrides=tuple(given),
        fraction=known.network(choice.size).fraction,
        share=choice.share,
        recipe=known.recipe_path.name,
        max_macs=budget,
        reason=plan.reason,
        trunk=None if trunk is None else os.path.relpath(trunk.path, known.folder),
        seed=seed,
    )
    return PlanRecord(
        plan=plan,
        observations=tuple(seen),
        command=shlex.join(["esper-train", *overrides]),
        decision=decision,
        fractions=tuple(network.fraction for network in known.networks[1:-1]),
    )


def _question(
    known: Family, runs: Sequence[FinishedRun], pilots: Sequence[str], *, macs: float, hours: float | None
) -> Question:
    """What is asked; trunks are those of the pilots, which the budget pays for."""
    own = [run for run in runs if run.run_dir.name in pilots and run.seed == known.config.rng_seed]
    found = [run.trunk for run in own if run.trunk is not None]
    pilot_macs, pilot_seconds = spent_by(runs, pilots=pilots)
    latest = min(known.config.morphogenetic.growth_until, 1 - known.config.optimization.decay_fraction)
    return Question(
        sizes=tuple(network.size for network in known.networks),
        headline=known.headline,
        macs=macs if hours is None else None,
        seconds=None if hours is None else 3600 * hours,
        shares=tuple(sorted({known.share, *(share for share in _SHARES if share < latest)})),
        pilot_macs=pilot_macs,
        pilot_seconds=pilot_seconds,
        trunks={size: tuple(one.macs for one in found if one.size == size) for size in {one.size for one in found}},
        decay=known.config.optimization.decay_fraction,
        num_examples=known.num_val,
    )


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
