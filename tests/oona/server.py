"""A redis-server for one test, in a temporary folder; it can be killed, suspended and restarted."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

import pytest
import redis

from esper.configs import RedisConfig
from esper.oona.redis import RedisBus
from tests.forked import suspend

__all__ = ["PASSWORD", "RedisServer"]

PASSWORD = "canary-7f3a"
"""Must never be printed."""


def num_connections(admin: redis.Redis) -> int:
    """How many connections a server has accepted so far."""
    return admin.info("stats")["total_connections_received"]  # type: ignore[index,no-any-return]


class RedisServer:
    """Owner of a server process on a loopback port; acknowledged writes survive a kill."""

    def __init__(self) -> None:
        program = shutil.which("redis-server")
        if program is None and os.environ.get("ESPER_REQUIRE_REDIS"):
            pytest.fail("redis-server is required here, and not installed")
        if program is None:
            pytest.skip("redis-server is not installed (apt-get install redis-server)")
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        self.folder = Path(tempfile.mkdtemp(prefix="esper-redis-"))
        self._reserved = socket.socket()  # its port goes to nobody else, also while the server does not run
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(("127.0.0.1", 0))
        self.port = self._reserved.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"

    def start(self, *settings: str) -> Self:
        """Start or restart it, on the same port with the same data; returns when it accepts connections."""
        own = f"--port {self.port} --bind 127.0.0.1 --dir {self.folder} --appendonly yes --appendfsync always --save ''"
        log = self.folder / "log"
        with log.open("ab") as output:
            known = output.tell()
            self._process = subprocess.Popen(
                [self._program, *own.split(), "--requirepass", PASSWORD, *settings],
                stdout=output, stderr=output, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        deadline = time.monotonic() + 20
        while b"Ready to accept connections" not in log.read_bytes()[known:]:
            assert self._process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)
        return self

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """SIGSTOP: it accepts connections and never replies; returns when it has come to a halt."""
        assert self._process is not None
        suspend(self._process)

    def go_on(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Kill it and remove its folder."""
        self.kill()
        self._reserved.close()
        shutil.rmtree(self.folder)

    def config(self, **changes: Any) -> RedisConfig:
        """Settings to reach it, without the password; the timeout allows for a busy machine."""
        return RedisConfig(**{"url": self.url, "timeout_s": 5.0, **changes})

    def bus(self, *, claim_after_s: float = 60.0, user: str = "default", **changes: Any) -> RedisBus:
        """A bus with the password."""
        url = f"redis://{user}:{PASSWORD}@127.0.0.1:{self.port}"
        return RedisBus(self.config(**{"url": url, **changes}), claim_after_s=claim_after_s)

    def admin(self) -> redis.Redis:
        """A client with all permissions, to inspect and corrupt the data."""
        return redis.Redis(host="127.0.0.1", port=self.port, password=PASSWORD, socket_timeout=10)

    def dead_letters(self) -> list[dict[bytes, bytes]]:
        """The fields of all dead letters."""
        with contextlib.closing(self.admin()) as admin:
            return [fields for _, fields in admin.xrange("esper:dead")]  # type: ignore[union-attr]
