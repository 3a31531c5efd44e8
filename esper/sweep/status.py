"""`esper sweep status`: a table of a sweep's runs, printed once or kept up to date."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from esper.contracts.metrics import ACCURACY, MetricInfo, headline_of
from esper.errors import RunError
from esper.files import decode
from esper.sweep.manifest import Member, labels, members_of
from esper.sweep.member_state import MemberState, log_file, member_states
from esper.terminal import table_console
from esper.tracking.event_schema import EVENT
from esper.tracking.formatting import duration, metric

__all__ = ["Progress", "main"]

_STYLES = {
    "running": "cyan",
    "finished": "green",
    "failed": "bold red",
    "lost": "bold red",
    "killed": "bold red",
    "interrupted": "yellow",
    "unknown": "yellow",
}
# The rows of a live table in this order, because those that do not fit the terminal's height are cut off.
_LIVE_ORDER = {"running": 1, "waiting": 2, "finished": 3}  # 0 for the others, which need attention
_EVENTS = (b'{"kind": "run_started"', b'{"kind": "epoch"')
_PACE_EPOCHS = 5


@dataclass(kw_only=True)
class Progress:
    """Progress of a run, read from its journal as that grows.

    Attributes:
        epoch: number of epochs done.
        total_epochs: number of epochs to train; 0 before the run begins.
        metric: the leading metric of the last epoch on the validation split.
        headline: what that metric is.
    """

    journal: Path
    epoch: int = 0
    total_epochs: int = 0
    metric: float | None = None
    headline: MetricInfo = ACCURACY
    _offset: int = 0
    _times: list[float] = field(default_factory=list)

    def update(self) -> None:
        """Read the new lines of the journal."""
        try:
            with self.journal.open("rb") as file:
                if file.seek(0, 2) < self._offset:  # rewound to a checkpoint, or started anew
                    self.epoch, self.metric, self._offset, self._times = 0, None, 0, []
                file.seek(self._offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._offset += len(line)
                    if line.startswith(_EVENTS):
                        with contextlib.suppress(RunError):  # a damaged line; the next epoch's tells
                            self._read_event(decode(line, EVENT(), where=""))
        except OSError:
            return

    def eta_s(self) -> float | None:
        """Seconds to the end at the pace of the last epochs; None before the second epoch."""
        if len(self._times) < 2:
            return None
        pace = (self._times[-1] - self._times[0]) / (len(self._times) - 1)
        return max(0.0, self._times[-1] + pace * (self.total_epochs - self.epoch) - time.time())

    def _read_event(self, event: dict[str, Any]) -> None:
        if event["kind"] == "run_started":
            self.total_epochs, self.headline = event["total_epochs"], headline_of(event)
            self._times = []  # the time between two jobs of a run is not part of its pace
            return
        self.epoch, self.metric = event["epoch"], event["val_metrics"].get(self.headline.name)
        self._times = [*self._times[-_PACE_EPOCHS:], event["time_unix_s"]]


def main(sweep_dir: Path, *, watch: bool, interval_s: float = 5.0) -> int:
    """Print the states of a sweep's runs, with `watch` until all have ended; returns 1 if one failed or was lost.

    Raises:
        RunError: no sweep was launched there.
    """
    members = members_of(sweep_dir)
    progress = {member.name: Progress(journal=member.run_dir / "journal.jsonl") for member in members}
    console = table_console()
    states = _refresh(members, progress)
    if watch and console.is_terminal:
        with Live(_live_report(members, states, progress), console=console, auto_refresh=False) as live:
            while not _are_over(states):
                time.sleep(interval_s)
                states = _refresh(members, progress)
                live.update(_live_report(members, states, progress), refresh=True)
    else:
        console.print(_report(members, states, progress))
        while watch and not _are_over(states):
            time.sleep(interval_s)
            states = _refresh(members, progress)
            console.print(_counts(states))
    return 1 if any(state.is_lost or state.state == "failed" for state in states.values()) else 0


def _refresh(members: Sequence[Member], progress: Mapping[str, Progress]) -> dict[str, MemberState]:
    for run in progress.values():
        run.update()
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
        styled = Text(state.state, style=_STYLES.get(state.state, ""))
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
    return (
        f"{progress.epoch}/{progress.total_epochs}" if progress.total_epochs else "",
        state.figure or latest,
        duration(left_s) if left_s is not None else "",
    )


def _counts(states: Mapping[str, MemberState]) -> str:
    counts = Counter(state.state for state in states.values())
    return f"{len(states)} runs: " + ", ".join(f"{number} {state}" for state, number in counts.most_common())


def _are_over(states: Mapping[str, MemberState]) -> bool:
    return all(state.is_over for state in states.values())
