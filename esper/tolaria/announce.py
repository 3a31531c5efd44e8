"""What a run writes into its journal when it begins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from esper.configs import TolariaConfig
from esper.configs.recorded import recorded
from esper.contracts.events import Notice, RunStarted
from esper.devices import hints, machine
from esper.tolaria.cuda_graph import capture_obstacle
from esper.tolaria.run import Run
from esper.tracking import environment, read
from esper.tracking.formatting import number

__all__ = ["announce"]

_CPU_MACS = 2e14
"""A CPU of a few cores does these in about an hour."""


def announce(run: Run, notices: Sequence[tuple[str, str]], *, config: TolariaConfig, resumed_from: str | None) -> None:
    """Write that the run started or resumed, and what the user should know.

    Args:
        run: the run, opened and perhaps resumed.
        notices: more to tell: level and message.
        config: the settings as given, in which blueprints of the library have their names, not their ids.
        resumed_from: the checkpoint that it goes on from, if any.
    """
    splits = run.parts.splits
    before = _last_device(run) if resumed_from is not None else None
    run.emit(
        RunStarted,
        run_name=run.run_dir.name,
        experiment_name=config.experiment_name,
        total_steps=run.total_steps,
        total_epochs=run.total_epochs,
        steps_per_epoch=run.steps_per_epoch,
        num_parameters=run.host_cost.num_parameters,
        num_macs=run.host_cost.num_macs,
        skipped_macs=run.life.host_skipped_macs,
        num_sites=len(run.model.slots),
        device=str(run.parts.device),
        config=recorded(config),
        environment=environment(written_to=run.written_to),
        resumed_from=resumed_from,
        metrics=tuple(metric.info for metric in run.parts.task.metrics),
        noun=splits.example_noun,
        data_digest=splits.fingerprint.digest,
        num_examples={name: len(getattr(splits, name)) for name in ("train", "controller", "judge", "test")},
    )
    _notify(run, notices, resumed_from=resumed_from)
    now = run.parts.device
    if before is not None and before.type != now.type:
        mixed = "; mixed_precision=null is on with CUDA alone" if run.config.mixed_precision is None else ""
        message = f"resumes on {now} what trained on {before}: numbers from here on depend on that{mixed}"
        run.emit(Notice, level="INFO", message=message)


def _last_device(run: Run) -> torch.device | None:
    """Where the run trained before, as its journal says."""
    events = [event for event in read(run.journal.path) if event["kind"] == RunStarted.kind]
    return torch.device(events[-1]["device"]) if events else None


def _notify(run: Run, notices: Sequence[tuple[str, str]], *, resumed_from: str | None) -> None:
    """Write what the user should know."""

    def inform(message: str) -> None:
        run.emit(Notice, level="INFO", message=message)

    for message in run.parts.splits.notices:
        run.warn(message)
    for message in run.data_notices:
        inform(message)
    if run.config.adjusted:
        inform(f"adjusted {'; '.join(run.config.adjusted)}")
    for level, message in notices:
        run.emit(Notice, level=level, message=message)
    asked = run.config.checkpoint.resume_from
    if run.is_over and asked and resumed_from == str(Path(asked).expanduser()):
        limit = "max_epochs" if run.config.optimization.max_macs is None else "max_macs"
        run.warn(
            f"checkpoint.resume_from={asked}: no step is left to train, as optimization.{limit}="
            f"{getattr(run.config.optimization, limit):g} is done; to train further, raise it"
        )
    if (reason := run.config.morphogenetic.plan_reason) and resumed_from in (None, asked):
        inform(f"as planned in {run.config.morphogenetic.plan_path}: {reason}")
    if run.config.morphogenetic.policy == "replay" and run.model.recipe and resumed_from is None:
        inform(f"modules built from the recipe: {len(run.model.recipe)}")
    if resumed_from is None:
        for message in hints(run.config.device, run.parts.device, machine(), num_ranks=run.ranks.size):
            inform(message)
    if advice := _advice_for_cpu(run):
        inform(advice)
    if run.parts.device.type == "cuda" and (obstacle := capture_obstacle(run.config)):
        inform(f"the step is not captured as a CUDA graph: {obstacle}")
    if run.ranks.size > 1:
        inform(f"{run.ranks.size} ranks share each batch of {run.config.dataset.batch_size} examples")
    for message in _skipped(run):
        run.warn(message)


def _skipped(run: Run) -> Iterator[str]:
    """Which shares of `schedule_at` will be skipped, and why."""
    budget = run.life.budget
    reasons = (
        (budget.too_late, "the next consultation is after growth_until"),
        (budget.too_soon, "the copies of the share before are still held then"),
    )
    for shares, reason in reasons:
        if shares:
            is_all = len(shares) == len(run.config.morphogenetic.schedule_at)
            one = "this share is skipped" if len(shares) == 1 else "these shares are skipped"
            counted = "; max_epochs still counts what it would cost" if budget.counts_skipped else ""
            yield f"schedule_at={list(shares)}: {reason}, so {'nothing will grow' if is_all else one}{counted}"


def _advice_for_cpu(run: Run) -> str | None:
    """What to train on a CPU instead, if this would take hours."""
    steps = run.total_steps - run.state.global_step
    macs = steps * run.config.dataset.batch_size * run.life.image_macs
    if run.parts.device.type != "cpu" or macs < _CPU_MACS:
        return None
    suited = "gpt_quick" if run.config.task.name == "language_model" else "quickstart"
    return (
        f"a recipe for a GPU: its {number(macs)} MACs take a CPU hours or days; one that suits a CPU: "
        f"esper-train experiment={suited}"
    )
