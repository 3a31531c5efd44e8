"""`esper sweep status`: a table of a sweep's runs, printed once or kept up to date."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from esper.contracts.metrics import ACCURACY
from esper.sweep.manifest import Member, all_members, is_search, labels
from esper.sweep.member_state import NOT_STARTED, MemberState, log_file, member_states
from esper.sweep.progress import Progress
from esper.terminal import table_console
from esper.tracking.formatting import duration, metric

__all__ = ["STYLES", "main"]

STYLES = {
    "running": "cyan",
    "finished": "green",
    "failed": "bold red",
    "lost": "bold red",
    "killed": "bold red",
    "interrupted": "yellow",
    "unknown": "yellow",
}
# The rows of a live table in this order, because those that do not fit the terminal's height are cut off.
_LIVE_ORDER = {"running": 1, "waiting": 2, NOT_STARTED: 2, "finished": 3}  # 0 for the others, which need attention
_QUIET_S = 60.0
"""A sweep of which no run runs for so long has ended, although it has runs that did not begin."""


def main(sweep_dir: Path, *, watch: bool, interval_s: float = 5.0) -> int:
    """Print the states of a sweep's runs, with `watch` until all have ended; returns 1 if one failed or was lost.

    Raises:
        RunError: no sweep was launched there.
    """
    members, progress = all_members(sweep_dir), dict[str, Progress]()
    console = table_console()
    states: Mapping[str, MemberState] = _refresh(members, progress)
    later = _watched(sweep_dir, progress, states, interval_s=interval_s) if watch else ()
    if watch and console.is_terminal:
        with Live(_live_report(members, states, progress), console=console, auto_refresh=False) as live:
            for members, states in later:
                live.update(_live_report(members, states, progress), refresh=True)
    else:
        console.print(_report(members, states, progress))
        for _, states in later:
            console.print(_counts(states))
    return 1 if any(state.is_lost or state.state == "failed" for state in states.values()) else 0


def _watched(
    sweep_dir: Path, progress: dict[str, Progress], states: Mapping[str, MemberState], *, interval_s: float
) -> Iterator[tuple[list[Member], Mapping[str, MemberState]]]:
    """Members and states every `interval_s`, until all runs have ended, or no run has run for `_QUIET_S`.

    A search is watched for `_QUIET_S` more, as it may add runs.
    """
    quiet_s, may_grow = 0.0, is_search(sweep_dir)
    while quiet_s < _QUIET_S and (may_grow or not all(state.is_over for state in states.values())):
        time.sleep(interval_s)
        members = all_members(sweep_dir)
        is_quiet = all(state.is_over or state.state == NOT_STARTED for state in states.values())
        quiet_s = quiet_s + interval_s if is_quiet else 0.0
        states = _refresh(members, progress)
        yield members, states


def _refresh(members: Sequence[Member], progress: dict[str, Progress]) -> dict[str, MemberState]:
    """The members' states; reads what is new in their journals."""
    for member in members:
        progress.setdefault(member.name, Progress(journal=member.run_dir / "journal.jsonl")).update()
    return member_states(members)


def _live_report(
    members: Sequence[Member], states: Mapping[str, MemberState], progress: Mapping[str, Progress]
) -> Group:
    return _report(sorted(members, key=lambda member: _LIVE_ORDER.get(states[member.name].state, 0)), states, progress)


def _report(members: Sequence[Member], states: Mapping[str, MemberState], progress: Mapping[str, Progress]) -> Group:
    """Counts, a table, and the reasons of the states that have one."""
    short = labels(members)
    table = Table(box=None, pad_edge=False)
    known = dict.fromkeys(run.headline.label for run in progress.values() if run.total_epochs)
    figure = " or ".join(known) or ACCURACY.label
    for heading in ("run", "state", "epoch", figure, "time left", "job"):
        numeric = heading in ("epoch", figure, "time left")
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    reasons = []
    for member in members:
        state, job = states[member.name], member.job()
        styled = Text(state.state, style=STYLES.get(state.state, ""))
        cells = _progress_cells(state, progress[member.name])
        table.add_row(short[member.name], styled, *cells, job.short_id if job else "")
        if state.reason:
            reasons.append(Text.assemble(styled, f" {short[member.name]}: {state.reason}"))
        if (state.is_lost or state.state == "failed") and (log := log_file(member)):
            reasons.append(Text(f"  log: {log}"))
    return Group(Text(_counts(states)), table, *reasons)


def _progress_cells(state: MemberState, progress: Progress) -> tuple[str, str, str]:
    latest = "" if progress.metric is None else metric(progress.metric, progress.headline, decimals=2)
    left_s = progress.eta_s() if state.state == "running" else None
    # A run may finish before its last planned epoch: at its MACs, or stopped early.
    planned = progress.epoch if state.state == "finished" else progress.total_epochs
    return (
        f"{progress.epoch}/{planned}" if progress.total_epochs else "",
        state.figure or latest,
        duration(left_s) if left_s is not None else "",
    )


def _counts(states: Mapping[str, MemberState]) -> str:
    counts = Counter(state.state for state in states.values())
    return f"{len(states)} runs: " + ", ".join(f"{number} {state}" for state, number in counts.most_common())
