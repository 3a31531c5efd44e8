"""Whether a run's process is still there: what `status.json` cannot tell after a kill or a power failure."""

from __future__ import annotations

import fcntl
import functools
import socket
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import psutil
from pydantic import AfterValidator, Field, TypeAdapter

from esper.errors import RunError
from esper.files import decode, decoder, json_object, open_regular, read_json
from esper.tracking.event_schema import EVENT, RESULT

__all__ = [
    "is_locked",
    "is_remote",
    "killed_reason",
    "last_seen_s",
    "may_run",
    "mount_of",
    "read_status",
    "recorded_status",
]

_STATUS = json_object(
    "Status",
    {
        "status": Literal["running", "finished", "failed", "interrupted"],
        "reason": str,
        "pid": NotRequired[Annotated[int, Field(gt=0, lt=2**31)]],
        "host": NotRequired[str],  # not in 0.1.0
        "result": NotRequired[RESULT | None],
    },
)

_TAIL_BYTES = 256 * 1024
_NETWORK = frozenset((
    "9p", "afs", "beegfs", "ceph", "cifs", "fhgfs", "gpfs", "lustre", "nfs", "nfs4", "panfs", "smb3", "smbfs", "wekafs",
))  # fmt: skip
_LOCKS_WITH = {"nfs": "local_lock=none", "nfs4": "local_lock=none", "lustre": "flock"}
"""Mount options with which a lock of one host is seen by the others; see nfs(5), mount.lustre(8)."""
_ALWAYS_LOCK = frozenset({"ceph", "gpfs"})


@functools.cache
def _decoder() -> TypeAdapter[dict[str, Any]]:
    return decoder(Annotated[_STATUS, AfterValidator(_require_result)])


def _require_result(status: dict[str, Any]) -> dict[str, Any]:
    if status["status"] == "finished" and not status.get("result"):
        raise ValueError("finished without a result")
    return status


def recorded_status(run_dir: Path) -> dict[str, Any] | None:
    """The content of `status.json`; None without one.

    Raises:
        RunError: it is damaged; the run's own command rebuilds it.
    """
    try:
        return read_json(run_dir / "status.json", _decoder())
    except FileNotFoundError:
        return None
    except RunError as error:
        raise RunError(f"{error}; the run's own command rebuilds it") from None


def read_status(run_dir: Path) -> tuple[str, str]:
    """Status and reason in `status.json`, `killed` if it says running and the run's process is gone; "" without one.

    Where it is damaged, the lock tells whether the run is running or was killed.
    """
    if reason := killed_reason(run_dir):
        return "killed", reason
    content = _content(run_dir)
    return (content["status"], content["reason"]) if content else ("", "")


def killed_reason(run_dir: Path) -> str:
    """`last seen DATE TIME` of a run that was killed; empty unless its process is certainly gone."""
    status = _content(run_dir)
    if status is None or status["status"] != "running" or may_run(run_dir, status) or _content(run_dir) != status:
        return ""  # the second reading: it may have ended meanwhile
    seen = f"last seen {datetime.fromtimestamp(last_seen_s(run_dir)).astimezone():%Y-%m-%d %H:%M:%S}"
    return f"{seen}; {status['reason']}" if status["reason"] else seen


def is_locked(run_dir: Path) -> bool:
    """Whether a process holds the run folder's lock."""
    return _is_locked(run_dir) is True


def is_remote(kind: str) -> bool:
    """Whether a type of filesystem is reached over the network."""
    return kind in _NETWORK or (kind.startswith("fuse.") and kind != "fuse.overlayfs")


def mount_of(folder: Path) -> tuple[str, list[str]]:
    """Type and mount options of the filesystem of a folder, which need not exist; empty if unknown."""
    folder = folder.resolve()
    mounts = {Path(mount.mountpoint): mount for mount in psutil.disk_partitions(all=True)}
    mount = next((mounts[path] for path in (folder, *folder.parents) if path in mounts), None)
    return (mount.fstype, mount.opts.split(",")) if mount else ("", [])


def may_run(run_dir: Path, status: Mapping[str, Any] | None = None) -> bool:
    """Whether a process may be training the run: the lock tells, or the process in `status` (of `status.json`)."""
    status = status or _content(run_dir) or {}
    is_here = status.get("host") == socket.gethostname()
    locked = _is_locked(run_dir)
    if locked is None:  # the process tells; without a status, none has begun
        return bool(status) and (not is_here or psutil.pid_exists(status.get("pid", 0)))
    return locked or not (is_here or _sees_locks_of_other_hosts(run_dir))


def _sees_locks_of_other_hosts(folder: Path) -> bool:
    kind, options = mount_of(folder)
    if kind in _LOCKS_WITH:
        return _LOCKS_WITH[kind] in options
    return kind in _ALWAYS_LOCK or not is_remote(kind)


def _is_locked(run_dir: Path) -> bool | None:
    """Whether a process holds the lock; None if that cannot be told.

    A shared lock needs no permission to write, and several commands can hold it at once.
    """
    try:
        with open_regular(run_dir / ".lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # closing the file releases it
            return False
    except BlockingIOError:
        return True
    except (OSError, RunError):
        return None


def _content(run_dir: Path) -> dict[str, Any] | None:
    try:
        return recorded_status(run_dir)
    except RunError:
        return {"status": "running", "reason": "status.json is damaged"}


def last_seen_s(run_dir: Path) -> float:
    """Unix time of the journal's last event; without one, of its status."""
    try:
        with open_regular(run_dir / "journal.jsonl") as file:
            start = max(0, file.seek(0, 2) - _TAIL_BYTES)
            file.seek(start)
            lines = file.read().split(b"\n")[:-1]  # an incomplete last line is left out
        return float(decode(lines[-1], EVENT(), where="")["time_unix_s"])
    except (OSError, LookupError, RunError):
        return (run_dir / "status.json").stat().st_mtime
