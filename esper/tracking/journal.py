"""The journal of a run: every event is one JSON line, written before any listener or tracker gets it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from enum import Enum
from io import BufferedReader
from pathlib import Path
from typing import Any

from esper.contracts.events import Event
from esper.contracts.metrics import MetricInfo
from esper.errors import RunError, WriteError
from esper.files import decode, open_regular
from esper.tracking.event_schema import EVENT

__all__ = ["Journal", "mend", "read", "read_from", "run_folders", "strict"]

logger = logging.getLogger(__name__)

Listener = Callable[[Event], None]

_MLFLOW_STORES = ("mlartifacts", "mlruns")


class Journal:
    """Writer of a `journal.jsonl`; thread-safe, and the run folder's lock keeps other processes out.

    Lines are written unbuffered; `sync` forces them to disk. Numbers that are not finite become null (strict JSON). An
    incomplete last line, left by a crash, is removed on opening.

    Args:
        path: the file.
        guard: called before anything is written; raises a `RunError` if the run folder is not this process's any more.

    Raises:
        WriteError: from any method: the file cannot be written, e.g. because the disk is full.
    """

    def __init__(self, path: Path, *, guard: Callable[[], None] = lambda: None) -> None:
        self.path = path
        self._guard = guard
        self._listeners: list[Listener] = []
        self._lock = threading.RLock()  # reentrant: a listener may write
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
            self._size = _end_of_last_line(path)
            self._file.truncate(self._size)
        except OSError as error:
            raise _cannot_write(path, error) from None

    def subscribe(self, listener: Listener) -> None:
        """Call `listener` with every event written from now on, in the writing thread.

        A listener that raises is logged and removed: it must not stop the training.
        """
        self._listeners.append(listener)

    def write(self, event: Event) -> None:
        """Append an event, then call the listeners."""
        # Not `asdict`: its deep copy takes longer than all the rest.
        fields = {field.name: getattr(event, field.name) for field in dataclasses.fields(event)}
        entry = {"kind": event.kind, "time_unix_s": time.time(), **fields}
        line = json.dumps(strict(entry), allow_nan=False).encode() + b"\n"
        with self._lock:
            self._append(line)
            for listener in list(self._listeners):
                try:
                    listener(event)
                except Exception:
                    logger.exception("a listener of the journal failed and was removed")
                    self._listeners.remove(listener)

    def sync(self) -> int:
        """Force the file to disk, without blocking writers; returns the size synced, an offset for `rewind`."""
        self._guard()
        size = self._size
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _cannot_write(self.path, error) from None
        return size

    @property
    def size(self) -> int:
        """Bytes written, synced or not."""
        return self._size

    def rewind(self, offset: int) -> None:
        """Truncate to an earlier size, rounded down to the end of a line.

        The rest moves to `journal.abandoned.jsonl`: it is synced there before it is cut off here, so a crash between
        the two leaves it in both files.
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
        self._guard()
        try:
            remaining = memoryview(line)
            while remaining:
                remaining = remaining[self._file.write(remaining) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)  # remove the partial line
            raise _cannot_write(self.path, error) from None
        self._size += len(line)


def run_folders(path: Path) -> list[Path]:
    """The run folders at or below a path, sorted.

    Run folders are not searched (W&B links the journal in there), nor are MLflow's stores, which hold copies of it.
    """
    run_dirs = []
    for folder, subfolders, files in os.walk(path):
        subfolders[:] = [name for name in subfolders if name not in _MLFLOW_STORES]
        if "journal.jsonl" in files:
            run_dirs.append(Path(folder))
            subfolders.clear()
    return sorted(run_dirs)


def read(path: Path, *, skip_damaged: bool = False) -> Iterator[dict[str, Any]]:
    """The events of a journal as dicts, without an incomplete last line.

    Raises:
        FileNotFoundError: it is missing.
        RunError: it cannot be read, or a line is not an event.
    """
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n") or line.isspace() or (skip_damaged and not _is_event(line)):
                continue
            yield _parse(line, where=f"{path}, line {number}")


def _opened(path: Path) -> BufferedReader:
    try:
        return open_regular(path)
    except RunError as error:
        raise RunError(f"{error}; restore it, or move its folder elsewhere") from None


def read_from(path: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """The complete events from byte `offset` on, and the offset after them.

    Raises:
        RunError: a line is not an event.
    """
    with _opened(path) as file:
        file.seek(offset)
        lines = file.read()
    lines = lines[: lines.rfind(b"\n") + 1]
    where = f"{path}, after byte {offset}"
    return [_parse(line, where=where) for line in lines.split(b"\n") if line.strip()], offset + len(lines)


def mend(path: Path) -> int:
    """Move damaged lines to `journal.damaged.jsonl`; returns their number. The run folder must be locked.

    Blanks stand in their place, so that the offsets in checkpoints still hold.

    Raises:
        WriteError: a file cannot be written.
    """
    damaged, offset = [], 0
    with contextlib.suppress(FileNotFoundError), _opened(path) as file:
        for line in file:
            if line.endswith(b"\n") and not line.isspace() and not _is_event(line):
                damaged.append((offset, line))
            offset += len(line)
    if damaged:
        try:
            _append_durably(path.with_name("journal.damaged.jsonl"), b"".join(line for _, line in damaged))
            with path.open("r+b") as file:
                for offset, line in damaged:
                    file.seek(offset)
                    file.write(b" " * (len(line) - 1))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _cannot_write(path, error) from None
    return len(damaged)


def _is_event(line: bytes) -> bool:
    try:
        _parse(line, where="")
    except RunError:
        return False
    return True


def _parse(line: bytes, *, where: str) -> dict[str, Any]:
    try:
        return decode(line, EVENT(), where=where)
    except RunError as error:
        raise RunError(f"{error}; the run's own command sets that line aside") from None


def _end_of_last_line(path: Path, *, before: int | None = None) -> int:
    """Offset after the last complete line in the first `before` bytes."""
    content = path.read_bytes()
    return content.rfind(b"\n", 0, before) + 1


def _append_durably(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # for a new file
    finally:
        os.close(folder)


def strict(value: Any) -> Any:
    """The value as strict JSON data: numbers that are not finite become null."""
    match value:
        case Enum():
            return strict(value.value)
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {str(strict(key)): strict(entry) for key, entry in value.items()}
        case list() | tuple():
            return [strict(entry) for entry in value]
        case MetricInfo():
            return dataclasses.asdict(value)
        case str() if not value.isascii():
            return value.encode(errors="replace").decode()  # names of files may be no UTF-8
        case Path():
            return strict(str(value))
        case _:
            return value


def _cannot_write(path: Path, error: OSError) -> WriteError:
    return WriteError(f"cannot write {path}: {error.strerror or error}; every run needs its journal")
