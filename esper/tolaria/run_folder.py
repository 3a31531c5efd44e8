"""The folder of a run: its lock, its status and the configuration that it was started with."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from esper.configs import TolariaConfig
from esper.configs.identity import checkpoints_folder, differences
from esper.configs.load import read_yaml, to_yaml
from esper.data import Fingerprint
from esper.errors import RunError
from esper.tolaria.data_record import write_data
from esper.tracking import write_atomically

__all__ = ["RunFolder", "recorded_config", "require_same_run"]

_MAX_DIFFERENCES = 4
_MAX_VALUE = 60
_LOCK_TIMEOUT_S = 0.5
"""Longer than the moment for which a command that shows the run's status tries the lock."""


class RunFolder:
    """A run folder, which one process at a time may write in.

    `.lock` keeps a second writer out; `status.json` is the run's status.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock = FileLock(self.path / ".lock", thread_local=False)  # acquired and released in different threads

    def acquire(self) -> None:
        """Create the folder and lock it.

        Raises:
            RunError: another process works in it, or it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=_LOCK_TIMEOUT_S)
        except Timeout:
            raise RunError(
                f"{self.path} is in use by another process; wait for it, stop it, or change a setting to get another "
                "run folder"
            ) from None
        except OSError as error:
            raise RunError(f"cannot write in {self.path}: {error.strerror or error}") from None

    def release(self) -> None:
        """Unlock the folder; safe to call twice."""
        self._lock.release()

    def status(self) -> dict[str, Any]:
        """The content of `status.json`; {} for a new run."""
        try:
            content = json.loads((self.path / "status.json").read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise RunError(
                f"{self.path / 'status.json'} is unreadable ({error}); remove it, or use fresh=true"
            ) from None
        return content if isinstance(content, dict) else {}

    def set_status(self, status: str, *, reason: str = "", result: dict[str, Any] | None = None) -> None:
        """Write `status.json`: running, finished, failed or interrupted."""
        process = {"pid": os.getpid(), "host": socket.gethostname()}
        content = {"status": status, "reason": reason, **process, "result": result}
        write_atomically(self.path / "status.json", json.dumps(content, indent=2) + "\n")

    def write_config(self, config: TolariaConfig, data: Fingerprint, *, checkpoint_dir: Path | None = None) -> None:
        """Write `config.yaml` and `data.json`, also beside checkpoints that are kept outside of the run folder."""
        folders = [self.path]
        if checkpoint_dir is not None and not checkpoint_dir.is_relative_to(self.path):
            checkpoint_dir.mkdir(parents=True, exist_ok=True)
            folders.append(checkpoint_dir)
        for folder in folders:
            write_data(folder, data)
            write_atomically(folder / "config.yaml", to_yaml(config))

    def set_aside(self) -> Path | None:
        """Move the contents to a sibling folder to make room for a fresh run; returns it. Needs the lock."""
        contents = [entry for entry in self.path.iterdir() if entry.name != ".lock"]
        if not contents:
            return None
        number = 1
        while (old := self.path.with_name(f"{self.path.name}.old{number}")).exists():
            number += 1
        old.mkdir()
        for entry in contents:
            entry.rename(old / entry.name)
        return old


def recorded_config(folder: Path) -> dict[str, Any] | None:
    """The configuration in a folder's `config.yaml`; None without the file.

    Raises:
        RunError: the file cannot be read.
    """
    file = folder / "config.yaml"
    if not file.exists():
        return None
    try:
        content = yaml.safe_load(read_yaml(file))
        return {str(key): value for key, value in content.items()}
    except (ValueError, AttributeError, yaml.YAMLError):
        raise RunError(f"{file} is not the configuration of a run; restore it, or use another folder") from None


def require_same_run(config: TolariaConfig, run_dir: Path) -> None:
    """Refuse a folder that holds a run of other settings, whether that has finished or not; `fresh` allows it.

    Raises:
        RunError: the folder or its checkpoints are another run's; the settings that differ, and what to do.
    """
    if config.fresh:
        return
    checkpoints = checkpoints_folder(run_dir, checkpoint_dir=config.checkpoint.checkpoint_dir)
    for folder in dict.fromkeys([run_dir, checkpoints]):
        recorded = recorded_config(folder)
        if recorded is None:
            if (folder / "status.json").exists():
                raise RunError(
                    f"{folder} holds a run, but {folder / 'config.yaml'} is missing, so it is unknown which; restore "
                    "the file, use another folder, or start over with fresh=true"
                )
        elif changed := differences(recorded, config):
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
