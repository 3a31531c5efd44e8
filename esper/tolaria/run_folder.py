"""The folder of a run: its lock, its status and the configuration that it was started with."""

from __future__ import annotations

import functools
import itertools
import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from pydantic import TypeAdapter

from esper.configs import TolariaConfig
from esper.configs.identity import checkpoints_folder, differences, with_defaults
from esper.configs.load import read_yaml, to_yaml
from esper.data import Fingerprint
from esper.errors import RunError, WriteError
from esper.files import as_json, decoder, write_atomically
from esper.tolaria.data_record import write_data
from esper.tracking.history import History
from esper.tracking.journal import mend, read, strict
from esper.tracking.liveness import is_locked, recorded_status

__all__ = ["RunFolder", "recorded_config", "require_same_run"]

_MAX_DIFFERENCES = 4
_MAX_VALUE = 60
_LOCK_TIMEOUT_S = 0.5
"""Longer than the moment for which a command that shows the run's status tries the lock."""
_SUSPENDED_S = 30.0
"""How long to wait for such a command that was suspended in that moment."""
_held_here: set[Path] = set()
"""Folders that this process has locked."""


class RunFolder:
    """A run folder, which one process at a time may write in.

    `.lock` keeps a second writer out; `status.json` is the run's status. A folder that is removed or replaced, or whose
    `.lock` is, admits a second writer: `require_held` finds that out, before every line, checkpoint and status that is
    written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._file = self.path / ".lock"
        self._lock = FileLock(self._file, thread_local=False)  # acquired and released in different threads
        self._held: tuple[int, int] | None = None

    def acquire(self) -> None:
        """Create the folder and lock it.

        Raises:
            RunError: another process works in it, or it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._wait_for_lock()
            self._held = _identity(self._file)
            _held_here.add(self.path)
        except Timeout:
            who, remedy = "process; wait for it, stop it", "or change a setting to get another run folder"
            if self.path in _held_here:
                who = "trainer of this process, which was not shut down; call its shutdown()"
            raise RunError(f"{self.path} is in use by another {who}, {remedy}") from None
        except OSError as error:
            raise RunError(f"cannot write {error.filename or self.path}: {error.strerror or error}") from None

    def _wait_for_lock(self) -> None:
        until = time.monotonic() + _SUSPENDED_S
        while True:
            try:
                self._lock.acquire(timeout=_LOCK_TIMEOUT_S)
                return
            except Timeout:
                if is_locked(self.path) or time.monotonic() > until:  # by a run: what shows the status shares it
                    raise

    def release(self) -> None:
        """Unlock the folder, if this object holds it."""
        if self._lock.is_locked:
            _held_here.discard(self.path)
        self._lock.release()

    def require_held(self) -> None:
        """Check that the folder, and the lock in it, are still those that this process locked.

        The lock file stays open, so no other file gets its inode.

        Raises:
            WriteError: they are gone, or others stand in their place.
        """
        try:
            is_held = self._held in (None, _identity(self._file))
        except OSError:
            is_held = False
        if not is_held:
            raise WriteError(
                f"{self.path} or the .lock in it was removed or replaced while the run trained, so another process may "
                "write there; this run has stopped, restore the folder if it is gone, and repeat the command"
            )

    def status(self) -> dict[str, Any]:
        """The content of `status.json`; {} for a new run, and where it is damaged (see `mend`)."""
        try:
            return recorded_status(self.path) or {}
        except RunError:
            return {}

    def set_status(self, status: str, *, reason: str = "", result: dict[str, Any] | None = None) -> None:
        """Write `status.json`: running, finished, failed or interrupted.

        Raises:
            WriteError: it cannot be written, or the folder is not this process's any more.
        """
        self.require_held()
        process = {"pid": os.getpid(), "host": socket.gethostname()}
        content = {"status": status, "reason": reason, **process, "result": result}
        write_atomically(self.path / "status.json", json.dumps(strict(content), indent=2) + "\n")

    def mend(self) -> list[str]:
        """Set aside the files that are damaged and can be rebuilt, and rebuild them; returns what was done to each.

        Needs the lock. The settings come from the journal; so does the status of a run that finished, any other goes
        on from its checkpoints.
        """
        done = []
        if num := mend(self.path / "journal.jsonl"):
            done.append(f"journal.jsonl: damaged lines, moved to journal.damaged.jsonl: {num}")
        try:
            recorded_status(self.path)
        except RunError:
            done.append(self._set_damaged_aside("status.json"))
            if (ended := _history(self.path).ended) is not None:
                self.set_status(ended["status"], reason=ended["reason"], result=ended["result"])
        try:
            recorded_config(self.path)
        except RunError:
            if config := _journalled_config(self.path):
                done.append(self._set_damaged_aside("config.yaml"))
                write_atomically(self.path / "config.yaml", yaml.safe_dump(config, sort_keys=False))
        return done

    def _set_damaged_aside(self, name: str) -> str:
        stem, _, suffix = name.rpartition(".")
        names = (f"{stem}.damaged{number or ''}.{suffix}" for number in itertools.count())
        aside = next(path for path in map(self.path.joinpath, names) if not path.exists())
        try:
            (self.path / name).rename(aside)
        except OSError as error:
            raise WriteError(f"cannot rename {self.path / name}: {error.strerror or error}") from None
        return f"{name}: damaged, moved to {aside.name}"

    def write_config(self, config: TolariaConfig, data: Fingerprint, *, checkpoint_dir: Path | None) -> None:
        """Write `config.yaml` and `data.json`, also beside checkpoints that are kept outside of the run folder."""
        folders = [self.path]
        if checkpoint_dir is not None:
            checkpoint_dir.parent.mkdir(parents=True, exist_ok=True)
            if not checkpoint_dir.is_relative_to(self.path):
                checkpoint_dir.mkdir(exist_ok=True)
                folders.append(checkpoint_dir)
        for folder in folders:
            write_data(folder, data)
            write_atomically(folder / "config.yaml", to_yaml(config))

    def set_aside(self) -> None:
        """Move the contents to a sibling folder to make room for a fresh run. Needs the lock."""
        contents = [entry for entry in self.path.iterdir() if entry.name != ".lock"]
        if not contents:
            return
        number = 1
        while (old := self.path.with_name(f"{self.path.name}.old{number}")).exists():
            number += 1
        try:
            old.mkdir()
            for entry in contents:
                entry.rename(old / entry.name)
        except OSError as error:
            raise WriteError(f"cannot move {self.path} aside: {error.strerror or error}") from None


def _identity(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_dev, found.st_ino


def _history(run_dir: Path) -> History:
    """What the journal tells, without its damaged lines."""
    try:
        return History.of(read(run_dir / "journal.jsonl", skip_damaged=True))
    except (FileNotFoundError, RunError):
        return History()


def _journalled_config(run_dir: Path) -> dict[str, Any] | None:
    """The configuration that the run was last started with, as its journal tells it; None without one."""
    started = _history(run_dir).started
    return started["config"] if started else None


@functools.cache
def _config_schema() -> TypeAdapter[dict[str, Any]]:
    return decoder(as_json(TolariaConfig))


def recorded_config(folder: Path) -> dict[str, Any] | None:
    """The configuration in a folder's `config.yaml`; None without the file.

    Raises:
        RunError: the file cannot be read, or is none.
    """
    file = folder / "config.yaml"
    if not os.path.lexists(file):
        return None
    try:
        content = _config_schema().validate_python(yaml.safe_load(read_yaml(file)), strict=True)
    except (ValueError, RecursionError, yaml.YAMLError):
        raise RunError(f"{file} is not the configuration of a run; {_remedy(folder)}") from None
    try:
        with_defaults(content)  # a file that was cut lacks settings, and one of a newer version has others
    except ValueError as error:
        raise RunError(f"{file} is not the configuration of a run ({error}); {_remedy(folder)}") from None
    return content


def _remedy(folder: Path) -> str:
    """What to do about a configuration that is damaged."""
    try:
        is_known = bool(with_defaults(_journalled_config(folder) or {}))
    except ValueError:
        is_known = False
    return "the run's own command rebuilds it" if is_known else "restore it, or use another folder"


def require_same_run(config: TolariaConfig, run_dir: Path) -> None:
    """Refuse a folder that holds a run of other settings, whether that has finished or not; `fresh` allows it.

    Raises:
        RunError: the folder or its checkpoints are another run's; the settings that differ, and what to do.
    """
    if config.fresh:
        return
    checkpoints = checkpoints_folder(run_dir, checkpoint_dir=config.checkpoint.checkpoint_dir)
    for folder in dict.fromkeys([run_dir, checkpoints]):
        try:
            recorded = recorded_config(folder)
        except RunError:
            if (recorded := _journalled_config(folder)) is None:
                raise
        if recorded is None and (folder / "status.json").exists() and (recorded := _journalled_config(folder)) is None:
            raise RunError(
                f"{folder} holds a run, but {folder / 'config.yaml'} is missing, so it is unknown which; restore "
                "the file, use another folder, or start over with fresh=true"
            )
        if recorded is not None and (changed := differences(recorded, config)):
            raise RunError(_refusal(folder, changed, is_checkpoints=folder != run_dir))


def _refusal(folder: Path, changed: Mapping[str, tuple[Any, Any]], *, is_checkpoints: bool) -> str:
    named = [f"{key}: {_text(then)} → {_text(now)}" for key, (then, now) in changed.items()]
    more = f" and {len(named) - _MAX_DIFFERENCES} more" if len(named) > _MAX_DIFFERENCES else ""
    if is_checkpoints:
        what, elsewhere, fresh = "the checkpoints", "checkpoint.checkpoint_dir or name of the run folder", "sets them"
    else:
        what, elsewhere, fresh = "a run", "run folder", "moves it"
    longer = ""
    if any(key in changed for key in ("optimization.max_epochs", "optimization.max_macs")):
        longer = (
            "; to train it further, use another folder with checkpoint.resume_from=…/checkpoints/step-N (the steps "
            "count on) or model.init_from=RUN (from its network)"
        )
    return (
        f"{folder} holds {what} of other settings: {', '.join(named[:_MAX_DIFFERENCES])}{more}; give the same "
        f"settings, another {elsewhere}, or fresh=true, which {fresh} aside{longer}"
    )


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    if isinstance(value, list):
        text = f"[{','.join(map(_text, value))}]"
    else:
        text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _MAX_VALUE else f"{text[: _MAX_VALUE - 1]}…"
