"""A run as its folder tells it: journal, status and configuration, also while it goes on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esper.errors import RunError
from esper.tracking import read
from esper.tracking.history import History

__all__ = ["RunRecord", "read_run"]

Event = dict[str, Any]


@dataclass(kw_only=True)
class RunRecord:
    """What is known of a run; events are the lines of its journal.

    Attributes:
        run_dir: its folder.
        history: beginning, end, and the module of every module.
        events: the events by kind, in order.
        num_processes: how many processes worked on it, one after the other.
        status: running, finished, failed or interrupted.
        reason: why it failed or was interrupted.
        config_yaml: its frozen configuration; empty if there is none.
    """

    run_dir: Path
    history: History
    events: dict[str, list[Event]] = field(default_factory=dict)
    status: str = "running"
    reason: str = ""
    config_yaml: str = ""

    @property
    def num_processes(self) -> int:
        """How many processes worked on the run, one after the other."""
        return len(self.of_kind("run_started"))

    @property
    def result(self) -> dict[str, Any] | None:
        """Figures of a finished run."""
        return self.history.ended["result"] if self.history.ended else None

    def of_kind(self, kind: str) -> list[Event]:
        """The events of one kind."""
        return self.events.get(kind, [])

    def series(self, kind: str, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of a field of the events of one kind; what was not finite (null) is nan."""
        events = self.of_kind(kind)
        values = [float("nan") if event[key] is None else float(event[key]) for event in events]
        return [event["step"] for event in events], values


def read_run(run_dir: Path) -> RunRecord:
    """Read a run folder; a last journal line that is still being written is left out.

    Raises:
        RunError: there is no journal, or it is not one.
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
    elif (run_dir / "status.json").exists():
        status = json.loads((run_dir / "status.json").read_text())
        record.status, record.reason = status["status"], status["reason"]
    if (run_dir / "config.yaml").exists():
        record.config_yaml = (run_dir / "config.yaml").read_text()
    return record
