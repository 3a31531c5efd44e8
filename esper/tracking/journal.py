"""The journal of a run: every event, one JSON line each, written before anyone else hears of it."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from esper.contracts.events import Event
from esper.errors import RunError

__all__ = ["Journal", "read", "run_folders", "tail"]

logger = logging.getLogger(__name__)

Listener = Callable[[Event], None]


class Journal:
    """Owner of a `journal.jsonl`, to which only one process writes (the run folder's lock sees to that).

    A line is handed to the operating system at once, and forced to disk by `sync`. A number that is not finite becomes
    null: the file is strict JSON. A last line that a crash cut short is removed on opening. Safe from any thread.

    Raises:
        RunError: from any method: the file cannot be written, e.g. because the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listeners: list[Listener] = []
        self._lock = threading.RLock()  # a tracker's thread writes notices; a listener may write too
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
            self._size = _end_of_last_line(path)
            self._file.truncate(self._size)
        except OSError as error:
            raise _cannot_write(path, error) from None

    def subscribe(self, listener: Listener) -> None:
        """Have a function called with every event written from now on, in the thread that writes.

        One that raises is logged and not called again: what shows or forwards events never stops a training.
        """
        self._listeners.append(listener)

    def write(self, event: Event) -> None:
        """Append an event, then tell the listeners."""
        # Not `asdict`, which copies whatever is in the fields: that takes longer than all the rest.
        fields = {field.name: getattr(event, field.name) for field in dataclasses.fields(event)}
        entry = {"kind": event.kind, "time_unix_s": time.time(), **fields}
        line = json.dumps(_strict(entry), allow_nan=False).encode() + b"\n"
        with self._lock:
            self._append(line)
            for listener in list(self._listeners):
                try:
                    listener(event)
                except Exception:
                    logger.exception("a listener of the journal failed and is not told any more")
                    self._listeners.remove(listener)

    def sync(self) -> int:
        """Force what was written to disk, while others may write; returns the size, to which `rewind` goes back."""
        size = self._size
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _cannot_write(self.path, error) from None
        return size

    @property
    def size(self) -> int:
        """Bytes written, on disk or not."""
        return self._size

    def rewind(self, offset: int) -> None:
        """Go back to an earlier size, and to the line it lies in the end of.

        What was written since moves to `journal.abandoned.jsonl`: it is on disk there before it is cut off here, so a
        crash between the two leaves it in both.
        """
        with self._lock:
            try:
                offset = _end_of_last_line(self.path, before=offset)
                with self.path.open("rb") as file:
                    file.seek(offset)
                    abandoned = file.read()
                if abandoned:
                    _append_durably(self.path.with_name("journal.abandoned.jsonl"), abandoned)
                    self._file.truncate(offset)
                    self._size = offset
            except OSError as error:
                raise _cannot_write(self.path, error) from None

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._file.close()

    def _append(self, line: bytes) -> None:
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._file.truncate(self._size)  # no torn line before the next one
            raise _cannot_write(self.path, error) from None
        self._size += len(line)


def run_folders(path: Path) -> list[Path]:
    """The folders of runs at or below a path, in order.

    What lies inside a run's folder is part of it: W&B keeps links to the run's files there, the journal among them.
    """
    found = []
    for folder, subfolders, files in os.walk(path):
        if "journal.jsonl" in files:
            found.append(Path(folder))
            subfolders.clear()
    return sorted(found)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a journal as dicts; a last line that was not finished is left out.

    Raises:
        RunError: another line is not one of a journal.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                yield _parse(line, where=f"{path}, line {number}")


def tail(path: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """The events whose lines are complete from byte `offset` on, and the offset behind them.

    Raises:
        RunError: a line is not one of a journal.
    """
    with path.open("rb") as file:
        file.seek(offset)
        lines = file.read()
    lines = lines[: lines.rfind(b"\n") + 1]
    return [_parse(line, where=f"{path}, after byte {offset}") for line in lines.splitlines()], offset + len(lines)


def _parse(line: bytes, *, where: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    if not isinstance(event, dict) or "kind" not in event:
        raise RunError(f"{where}: not an event, so the journal is damaged; remove that line to use the rest")
    return event


def _end_of_last_line(path: Path, *, before: int | None = None) -> int:
    """Offset behind the last line that is complete in the first `before` bytes."""
    content = path.read_bytes()
    return content.rfind(b"\n", 0, before) + 1


def _append_durably(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the file may be new
    finally:
        os.close(folder)


def _strict(value: Any) -> Any:
    """What JSON can hold, and means the same to every reader."""
    match value:
        case Enum():
            return _strict(value.value)
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {str(_strict(key)): _strict(entry) for key, entry in value.items()}
        case list() | tuple():
            return [_strict(entry) for entry in value]
        case Path():
            return str(value)
        case _:
            return value


def _cannot_write(path: Path, error: OSError) -> RunError:
    return RunError(f"cannot write {path}: {error.strerror or error}; every run needs its journal")
