"""Remove the folders of runs, and never one that is no run's, or that a process works in."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from esper.configs.identity import checkpoints_folder
from esper.errors import RunError, WriteError
from esper.runs.listing import recorded_settings
from esper.sweep.manifest import Member
from esper.sweep.member_state import member_states
from esper.tracking.files import forget_member
from esper.tracking.liveness import may_run, recorded_status

__all__ = ["Removal"]

_LOCK_TIMEOUT_S = 0.5


class Removal:
    """Context manager that locks the folders of runs, so that none of them can begin, and can remove them.

    Raises:
        RunError: one is no run, is a link, or may be running.
    """

    def __init__(self, run_dirs: Sequence[Path]) -> None:
        self.run_dirs = list(dict.fromkeys(path.absolute() for path in run_dirs))
        self._locks = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            for run_dir in self.run_dirs:
                _require_run(run_dir)
                stack.enter_context(_locked(run_dir))
            self._locks = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._locks.close()

    @property
    def num_bytes(self) -> int:
        """Bytes that the folders hold."""
        return sum(path.lstat().st_size for run_dir in self.run_dirs for path in run_dir.rglob("*"))

    def remove(self) -> list[str]:
        """Remove the folders, and what their sweeps know about them; returns what is left elsewhere, a line each.

        Raises:
            WriteError: a folder cannot be removed; those before it are gone.
        """
        left = []
        for run_dir in self.run_dirs:
            recorded = recorded_settings(run_dir).get("checkpoint") or {}
            checkpoints = checkpoints_folder(run_dir, checkpoint_dir=recorded.get("checkpoint_dir"))
            if not checkpoints.is_relative_to(run_dir) and checkpoints.is_dir():
                left.append(f"left: {checkpoints}, the checkpoints of {run_dir.name}")
            forget_member(run_dir.parent, run_dir.name)
            try:
                # Renamed first: otherwise the same run could begin again in what is left of it.
                shutil.rmtree(run_dir.rename(run_dir.with_name(f".{run_dir.name}.removed")))
                if (member := run_dir.parent / ".sweep" / run_dir.name).is_dir():
                    shutil.rmtree(member)
            except OSError as error:
                raise WriteError(f"cannot remove {run_dir}: {error.strerror or error}") from None
        return left


def _require_run(run_dir: Path) -> None:
    """Check that a folder is a run's, by what it holds, and that its sweep has no job for it."""
    if run_dir.is_symlink():
        raise RunError(f"{run_dir} is a link to {run_dir.resolve()}; name that folder")
    if not run_dir.is_dir():
        raise RunError(f"{run_dir}: no such run; esper runs lists those there are")
    try:
        status = recorded_status(run_dir)
    except RunError:  # damaged, but its configuration tells
        status = None
    if not (run_dir / "journal.jsonl").is_file() or not (status or "experiment_name" in recorded_settings(run_dir)):
        raise RunError(f"{run_dir} is no run: a run has journal.jsonl, status.json and config.yaml; remove it yourself")
    if status and status["status"] == "running" and may_run(run_dir, status):
        raise RunError(f"{run_dir} is running; stop it first")
    if (run_dir.parent / ".sweep" / run_dir.name / "job.json").is_file():
        member = Member.read(run_dir.parent / ".sweep" / run_dir.name)
        state = member_states([member])[member.name]
        if not state.is_over:
            raise RunError(f"{run_dir} has a job that is {state.state}; cancel it, or wait until it has ended")


@contextlib.contextmanager
def _locked(run_dir: Path) -> Iterator[None]:
    """Context manager that holds the lock of a run folder."""
    lock = FileLock(run_dir / ".lock")
    try:
        lock.acquire(timeout=_LOCK_TIMEOUT_S)
    except Timeout:
        raise RunError(f"{run_dir} is in use by another process; stop it first") from None
    except OSError as error:
        raise WriteError(f"cannot write in {run_dir}: {error.strerror or error}") from None
    try:
        yield
    finally:
        lock.release()
