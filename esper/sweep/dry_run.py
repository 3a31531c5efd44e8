"""A dry run of a sweep: every kind of member is built and does a few steps here, and nothing is submitted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from esper.configs import TolariaConfig
from esper.configs.identity import digest
from esper.errors import EsperError
from esper.sweep.labels import labels
from esper.sweep.launch import Queue, plan, told_plan
from esper.sweep.manifest import Member
from esper.sweep.queues.slurm import SlurmQueue
from esper.terminal.display import table_console
from esper.tracking.formatting import duration

if TYPE_CHECKING:
    from esper.tolaria.dry_run import Rehearsal

__all__ = ["rehearse_sweep"]


def rehearse_sweep(members: Sequence[tuple[Member, TolariaConfig]], queue: Queue) -> None:
    """List the members with their parameters, their time and what becomes of them.

    Members that differ in nothing but `rng_seed` are built once.

    Raises:
        EsperError: a member cannot be built, or does not train.
    """
    kept, todo = plan(members)
    waiting = {member.name for member, _ in todo}
    kinds: dict[str, Rehearsal] = {}
    seconds: list[float | None] = []
    short = labels([member for member, _ in members])
    table = Table(box=None, pad_edge=False)
    for heading in ("run", "state", "epochs", "parameters", "about"):
        table.add_column(heading, justify="left" if heading in ("run", "state") else "right", overflow="fold")
    for member, config in members:
        kind = digest(dataclasses.replace(config, rng_seed=0))
        found = kinds[kind] = kinds.get(kind) or _rehearse(member, config)
        time_s = _seconds(found, config, queue)
        if member.name in waiting:
            seconds.append(time_s)
        state = (
            "to submit" if member.name in waiting else kept[member.name].state if member.name in kept else "finished"
        )
        told = duration(time_s) if time_s is not None else "?"
        epochs = str(config.optimization.max_epochs)
        table.add_row(short[member.name], state, epochs, f"{found.num_parameters:,}", told)
    table_console().print(table)
    print(f"{told_plan(len(members), kept=kept, todo=todo, verb='to submit')}; {queue.describe()}")  # noqa: T201
    print(f"{_told_time(seconds)}\nnothing was submitted")  # noqa: T201


def _rehearse(member: Member, config: TolariaConfig) -> Rehearsal:
    from esper.launch.run import rehearse  # torch

    try:
        return rehearse(config, member.run_dir)
    except EsperError as error:
        raise type(error)(f"{' '.join(member.overrides)}: {error}") from error


def _seconds(found: Rehearsal, config: TolariaConfig, queue: Queue) -> float | None:
    """How long the steps take; None if the job is to have a GPU, and there is none here."""
    elsewhere = isinstance(queue, SlurmQueue) and queue.options.gpus_per_node is not None
    return None if elsewhere and found.device == "cpu" and config.device != "cpu" else found.seconds


def _told_time(seconds: Sequence[float | None]) -> str:
    known = [one for one in seconds if one is not None]
    if len(known) < len(seconds):
        return "time: there is no GPU here to measure it on"
    return f"time: about {duration(sum(known))} one after the other; evaluation, growth and start are not in it"
