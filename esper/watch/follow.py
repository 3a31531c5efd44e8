"""Follow journals as they grow: each line is read once."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from esper.errors import RunError
from esper.files import decode, open_regular
from esper.report.run_record import RunRecord
from esper.tracking import run_folders
from esper.tracking.event_schema import EVENT
from esper.tracking.history import History
from esper.tracking.liveness import read_status

__all__ = ["Folder", "Follower"]

_UNREAD = tuple(f'{{"kind": "{kind}",'.encode() for kind in ("signals", "decision", "checkpoint", "notice"))
"""Kinds that a summary does not need; of `step` only the last line is read."""
_STEP = b'{"kind": "step",'
_SEEN_BYTES = 200
"""Bytes before the offset that tell whether the journal is still the one that was read."""
_LIVENESS_S, _SEARCH_S = 5.0, 5.0
_VERSIONS = itertools.count(1)
_MAX_DETAILED = 4
"""Runs of which every event is kept, those asked for last."""


class Follower:
    """One run, read from its journal as that grows; `version` rises with every change, and is not that of another run.

    Args:
        run_dir: the folder of the run.
        is_summary: leave out what a summary does not need, such as all steps but the last.
    """

    def __init__(self, run_dir: Path, *, is_summary: bool) -> None:
        self.run_dir, self.version, self.changed_s = run_dir, next(_VERSIONS), 0.0
        self._is_summary = is_summary
        self._checked_s = 0.0
        self._start()

    def _start(self) -> None:
        self.record = RunRecord(run_dir=self.run_dir, history=History())
        self._offset, self._seen = 0, b""

    def update(self) -> None:
        """Read the new lines, and whether the run's process lives."""
        before = (self.record.status, self.record.reason)
        has_new = self._read()
        if not (self.run_dir / "journal.jsonl").exists():
            self.record.status, self.record.reason = "removed", ""
        elif ended := self.record.history.ended:
            self.record.status, self.record.reason = ended["status"], ended["reason"]
        elif has_new or time.monotonic() - self._checked_s > _LIVENESS_S:
            self._checked_s = time.monotonic()
            with contextlib.suppress(OSError):
                status, self.record.reason = read_status(self.run_dir)
                self.record.status = status or "running"
        if has_new or before != (self.record.status, self.record.reason):
            self.version = next(_VERSIONS)

    def _read(self) -> bool:
        path = self.run_dir / "journal.jsonl"
        try:
            stat = path.stat()
            self.changed_s = stat.st_mtime
            if stat.st_size == self._offset:
                return False
            with open_regular(path) as file:
                file.seek(self._offset - len(self._seen))
                if stat.st_size < self._offset or file.read(len(self._seen)) != self._seen:
                    self._start()  # rewound to a checkpoint, or started anew
                    file.seek(0)
                new = file.read()
        except (OSError, RunError):  # it is gone, or being replaced
            return False
        new = new[: new.rfind(b"\n") + 1]
        self._offset, self._seen = self._offset + len(new), (self._seen + new)[-_SEEN_BYTES:]
        for event in self._events(new):
            with contextlib.suppress(KeyError, ValueError):  # well-formed, but not what a run writes
                self.record.history.add(event)
                of_kind = self.record.events.setdefault(event["kind"], [])
                if self._is_summary and event["kind"] == "step":
                    of_kind.clear()
                of_kind.append(event)
        return bool(new)

    def _events(self, new: bytes) -> Iterator[dict[str, Any]]:
        lines = new.splitlines(keepends=True)
        steps = [number for number, line in enumerate(lines) if line.startswith(_STEP)]
        for number, line in enumerate(lines):
            if self._is_summary and (line.startswith(_UNREAD) or (line.startswith(_STEP) and number != steps[-1])):
                continue
            if not line.isspace():
                with contextlib.suppress(RunError):  # a damaged line: `esper report` names it
                    yield decode(line, EVENT(), where="")


class Folder:
    """The runs at or below a folder.

    `lock`: hold it while using the records of runs, which requests of several threads update; `refresh_s`: seconds
    within which several pages share what was read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.refresh_s = folder, 1.0
        self.runs: list[Follower] = []
        self._known: dict[Path, int] = {}
        self._detailed: dict[int, Follower] = {}
        self.lock = threading.RLock()
        self._refreshed_s = self._searched_s = -1e9

    def changes(self, since: int) -> tuple[int, list[tuple[int, Follower]]]:
        """The highest version, and number and run of those whose version is higher than `since`."""
        with self.lock:
            self._refresh()
            changed = [(number, run) for number, run in enumerate(self.runs) if run.version > since]
            return max((run.version for run in self.runs), default=0), changed

    def detailed(self, number: int) -> Follower:
        """The run of this number with every event."""
        with self.lock:
            found = self._detailed.pop(number, None) or Follower(self.runs[number].run_dir, is_summary=False)
            self._detailed[number] = found  # now the last one
            while len(self._detailed) > _MAX_DETAILED:
                self._detailed.pop(next(iter(self._detailed)))
            found.update()
            return found

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._refreshed_s < self.refresh_s:
            return
        if now - self._searched_s > _SEARCH_S:
            for run_dir in run_folders(self.folder):
                if run_dir not in self._known:
                    self._known[run_dir] = len(self.runs)
                    self.runs.append(Follower(run_dir, is_summary=True))
            self._searched_s = now
        for run in self.runs:
            run.update()
        self._refreshed_s = time.monotonic()
