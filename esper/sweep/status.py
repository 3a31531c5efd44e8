"""`esper sweep status`: a table of a sweep's runs, once or kept up to date."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from esper.sweep.labels import labels
from esper.sweep.manifest import Member, members_of
from esper.sweep.states import Standing, log_of, standings
from esper.terminal.display import table_console
from esper.tracking.formatting import duration

__all__ = ["Progress", "main"]

_STYLES = {
    "running": "cyan",
    "finished": "green",
    "failed": "bold red",
    "lost": "bold red",
    "interrupted": "yellow",
    "unknown": "yellow",
}
_INTEREST = {"running": 1, "waiting": 2, "finished": 3}
_KINDS = (b'{"kind": "run_started"', b'{"kind": "epoch"')
_LAST_EPOCHS = 5


@dataclass(kw_only=True)
class Progress:
    """How far a run is, read from its journal as it grows.

    Attributes:
        epoch: epochs done.
        total_epochs: epochs to do; 0 before the run has begun.
        accuracy: validation accuracy of the last epoch, in [0, 1].
    """

    journal: Path
    epoch: int = 0
    total_epochs: int = 0
    accuracy: float | None = None
    _offset: int = 0
    _times: list[float] = field(default_factory=list)

    def update(self) -> None:
        """Read what is new."""
        try:
            with self.journal.open("rb") as file:
                if file.seek(0, 2) < self._offset:  # it was rewound to a checkpoint, or begun anew
                    self.epoch, self.accuracy, self._offset, self._times = 0, None, 0, []
                file.seek(self._offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._offset += len(line)
                    if line.startswith(_KINDS):
                        self._take(json.loads(line))
        except OSError:
            return

    def eta_s(self) -> float | None:
        """Seconds to the end at the pace of the last epochs; None before two epochs were seen."""
        if len(self._times) < 2:
            return None
        pace = (self._times[-1] - self._times[0]) / (len(self._times) - 1)
        return max(0.0, self._times[-1] + pace * (self.total_epochs - self.epoch) - time.time())

    def _take(self, event: dict[str, object]) -> None:
        # Time passes between two processes of a run, which says nothing about its pace.
        if event["kind"] == "run_started":
            self.total_epochs = int(str(event["total_epochs"]))
            self._times = []
            return
        self.epoch = int(str(event["epoch"]))
        accuracy = event["val_accuracy"]
        self.accuracy = float(str(accuracy)) if accuracy is not None else None
        self._times = [*self._times[-_LAST_EPOCHS:], float(str(event["time_unix_s"]))]


def main(sweep_dir: Path, *, watch: bool, interval_s: float = 5.0) -> int:
    """Print how the sweep stands, with `watch` until every job has gone; returns 0 if no run failed or was lost.

    Raises:
        RunError: no sweep was launched there.
    """
    members = members_of(sweep_dir)
    progress = {member.name: Progress(journal=member.run_dir / "journal.jsonl") for member in members}
    console = table_console()
    now = _look(members, progress)
    if watch and console.is_terminal:
        with Live(_watched(members, now, progress), console=console, auto_refresh=False) as live:
            while not _are_over(now):
                time.sleep(interval_s)
                now = _look(members, progress)
                live.update(_watched(members, now, progress), refresh=True)
    else:
        console.print(_told(members, now, progress))
        while watch and not _are_over(now):
            time.sleep(interval_s)
            now = _look(members, progress)
            console.print(_summary(now))
    return 1 if any(one.state in ("failed", "lost") for one in now.values()) else 0


def _look(members: Sequence[Member], progress: dict[str, Progress]) -> dict[str, Standing]:
    for one in progress.values():
        one.update()
    return standings(members)


def _watched(members: Sequence[Member], now: dict[str, Standing], progress: dict[str, Progress]) -> Group:
    """What may not fit the terminal's height, with the least interesting last."""
    return _told(sorted(members, key=lambda member: _INTEREST.get(now[member.name].state, 0)), now, progress)


def _told(members: Sequence[Member], now: dict[str, Standing], progress: dict[str, Progress]) -> Group:
    """Counts, a table, and a line for each member that needs one."""
    short = labels(members)
    table = Table(box=None, pad_edge=False)
    for heading in ("run", "state", "epoch", "accuracy", "time left", "job"):
        numeric = heading in ("epoch", "accuracy", "time left")
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    reasons = []
    for member in members:
        standing, job = now[member.name], member.job()
        state = Text(standing.state, style=_STYLES.get(standing.state, ""))
        job_id = job.id.partition("@")[0] if job else ""
        table.add_row(short[member.name], state, *_figures(standing, progress[member.name]), job_id)
        if standing.reason:
            reasons.append(Text.assemble(state, f" {short[member.name]}: {standing.reason}"))
        if standing.state in ("failed", "lost"):
            reasons.append(Text(f"  what its job wrote: {log_of(member)}"))
    return Group(Text(_summary(now)), table, *reasons)


def _figures(standing: Standing, progress: Progress) -> tuple[str, str, str]:
    accuracy = standing.metric if standing.metric is not None else progress.accuracy
    left = progress.eta_s() if standing.state == "running" else None
    return (
        f"{progress.epoch}/{progress.total_epochs}" if progress.total_epochs else "",
        f"{accuracy:.2%}" if accuracy is not None else "",
        duration(left) if left is not None else "",
    )


def _summary(now: dict[str, Standing]) -> str:
    counts = Counter(one.state for one in now.values())
    return f"{len(now)} runs: " + ", ".join(f"{number} {state}" for state, number in counts.most_common())


def _are_over(now: dict[str, Standing]) -> bool:
    return all(one.is_over for one in now.values())
