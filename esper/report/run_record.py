"""A run folder in memory: journal, status and configuration; also of a run that is still running."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esper.configs.load import read_yaml
from esper.errors import ConfigError, RunError
from esper.tracking import read
from esper.tracking.history import History
from esper.tracking.liveness import read_status

__all__ = ["RunRecord", "read_run"]

Event = dict[str, Any]


@dataclass(kw_only=True)
class RunRecord:
    """The contents of a run folder.

    Attributes:
        run_dir: the folder.
        history: start, end, and every module that grew.
        events: journal events by kind, in order.
        status: running, finished, failed, interrupted or killed.
        reason: why it failed or was interrupted; when a killed run was last seen.
        config_yaml: the configuration; empty if there is none.
    """

    run_dir: Path
    history: History
    events: dict[str, list[Event]] = field(default_factory=dict)
    status: str = "running"
    reason: str = ""
    config_yaml: str = ""

    @property
    def num_processes(self) -> int:
        """Number of processes that worked on the run one after the other (resumes + 1)."""
        return len(self.of_kind("run_started")) - len(self.of_kind("growth_undone"))  # which starts it again

    @property
    def result(self) -> dict[str, Any] | None:
        """Result of a finished run."""
        return self.history.ended["result"] if self.history.ended else None

    def of_kind(self, kind: str) -> list[Event]:
        """The events of one kind."""
        return self.events.get(kind, [])

    def series(self, kind: str, key: str, metric: str | None = None) -> tuple[list[int], list[float]]:
        """Steps and values of a field, or of a metric in it, over the events of one kind; null becomes nan."""
        events = self.of_kind(kind)
        values = [event[key] if metric is None else event[key].get(metric) for event in events]
        return [event["step"] for event in events], [float("nan") if one is None else float(one) for one in values]


def read_run(run_dir: Path) -> RunRecord:
    """Read a run folder, without an incomplete last line of the journal.

    Raises:
        RunError: the journal is missing or damaged, or the configuration is damaged.
    """
    record = RunRecord(run_dir=run_dir, history=History())
    path = run_dir / "journal.jsonl"
    try:
        for event in read(path):
            record.history.add(event)
            record.events.setdefault(event["kind"], []).append(event)
    except FileNotFoundError:
        raise RunError(f"{run_dir} is not a run folder: it has no journal.jsonl") from None
    except KeyError as error:
        raise RunError(f"{path} is not a journal of Esper: an event lacks {error}") from None
    ended = record.history.ended
    if ended is not None:
        record.status, record.reason = ended["status"], ended["reason"]
    else:
        status, record.reason = read_status(run_dir)
        record.status = status or "running"
    if (run_dir / "config.yaml").exists():
        try:
            record.config_yaml = read_yaml(run_dir / "config.yaml")
        except ConfigError:
            remedy = "the run's own command rebuilds it" if record.history.started else "restore it"
            raise RunError(f"{run_dir / 'config.yaml'} is not the configuration of a run; {remedy}") from None
    return record
