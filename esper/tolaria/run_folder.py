"""The folder of a run: its lock and its status."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from esper.errors import RunError
from esper.tracking import write_atomically

__all__ = ["RunFolder"]


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
            self._lock.acquire(timeout=0)
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
        content = {"status": status, "reason": reason, "pid": os.getpid(), "result": result}
        write_atomically(self.path / "status.json", json.dumps(content, indent=2) + "\n")

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
