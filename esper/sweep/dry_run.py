"""Dry run of a sweep: build every distinct member and train it for a few steps here; submit nothing."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from esper.configs import TolariaConfig
from esper.configs.identity import digest
from esper.errors import EsperError
from esper.sweep.launch import plan_submission
from esper.sweep.manifest import Member, labels
from esper.sweep.queues.base import Queue
from esper.terminal import table_console
from esper.tracking.formatting import duration

if TYPE_CHECKING:
    from esper.tolaria.dry_run import DryRun

__all__ = ["dry_run_sweep"]


def dry_run_sweep(members: Sequence[tuple[Member, TolariaConfig]], queue: Queue) -> None:
    """Print a table of the members: state, epochs, parameters, estimated time.

    Members that differ only in `rng_seed` are built once.

    Raises:
        EsperError: a member cannot be built, or does not train.
    """
    plan = plan_submission(members)
    to_submit = {member.name for member, _ in plan.to_submit}
    reports: dict[str, DryRun] = {}
    times_s: list[float | None] = []
    short = labels([member for member, _ in members])
    table = Table(box=None, pad_edge=False)
    for heading in ("run", "state", "epochs", "parameters", "about"):
        table.add_column(heading, justify="left" if heading in ("run", "state") else "right", overflow="fold")
    for member, config in members:
        key = digest(dataclasses.replace(config, rng_seed=0))
        report = reports[key] = reports.get(key) or _dry_run(member, config)
        time_s = _time_s(report, config, queue)
        if member.name in to_submit:
            state = "to submit"
            times_s.append(time_s)
        else:
            state = plan.active[member.name].state if member.name in plan.active else "finished"
        time = duration(time_s) if time_s is not None else "?"
        epochs = str(config.optimization.max_epochs)
        table.add_row(short[member.name], state, epochs, f"{report.num_parameters:,}", time)
    table_console().print(table)
    for notice in dict.fromkeys(notice for report in reports.values() for notice in report.notices):
        print(notice)  # noqa: T201
    print(f"{plan.describe('to submit')}; {queue.describe()}")  # noqa: T201
    print(f"{_total_time(times_s)}\nnothing was submitted")  # noqa: T201


def _dry_run(member: Member, config: TolariaConfig) -> DryRun:
    from esper.launch.dry_run import dry_run  # torch

    try:
        return dry_run(config, member.run_dir)
    except EsperError as error:
        raise type(error)(f"{shlex.join(member.overrides)}: {error}") from error


def _time_s(report: DryRun, config: TolariaConfig, queue: Queue) -> float | None:
    """Time of the run's steps; None if its job gets a GPU and this machine has none to measure on."""
    on_gpu = queue.requests_gpus and config.device != "cpu"
    return None if on_gpu and report.device == "cpu" else report.seconds


def _total_time(times_s: Sequence[float | None]) -> str:
    known = [time_s for time_s in times_s if time_s is not None]
    if len(known) < len(times_s):
        return "time: this machine has no GPU to measure it on"
    return f"time: about {duration(sum(known))} one after the other, excluding start, evaluation and growth"
