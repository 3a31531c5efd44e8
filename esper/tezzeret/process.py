"""A process that may crash, hang or take too much memory, without harm to the one that started it."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

import psutil

__all__ = ["ProcessFault", "Stopped", "WorkerProcess"]

_POLL_S = 0.02


class ProcessFault(Exception):  # noqa: N818
    """The process is of no use any more; `status` is crashed, hung or too_large, the message says why."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Stopped(Exception):  # noqa: N818
    """Waiting was given up because a stop was asked for."""


class WorkerProcess:
    """Owner of a process that reads and writes lines of JSON; `close` ends it, and what it started.

    Args:
        command: what to run.
        stop: when set, `read` gives up.
    """

    def __init__(self, command: Sequence[str], *, stop: threading.Event) -> None:
        self._stop = stop
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,  # so that the compilers it starts can be ended with it
        )
        self._unread = b""
        self._ended = False

    def write(self, content: dict[str, Any]) -> None:
        """Send a line; of a process that has died, `read` says how."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(content).encode() + b"\n")
            self._process.stdin.flush()

    def read(self, *, deadline: float, memory_bytes: int | None = None) -> dict[str, Any]:
        """The next line.

        Args:
            deadline: of `time.monotonic`.
            memory_bytes: most resident memory of the process and its children.

        Raises:
            ProcessFault: it died, did not answer in time, or took more memory.
            Stopped: see the class.
        """
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if self._stop.is_set():
                    raise Stopped
                if time.monotonic() > deadline:
                    raise ProcessFault("hung", "no answer in time")
                if memory_bytes is not None and self._memory_bytes() > memory_bytes:
                    raise ProcessFault("too_large", f"took more than {memory_bytes / 2**20:,.0f} MiB")
                if selector.select(_POLL_S):
                    received = os.read(pipe, 65536)
                    if not received:
                        raise ProcessFault("crashed", self._epitaph())
                    self._unread += received
        line, _, self._unread = self._unread.partition(b"\n")
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ProcessFault("crashed", f"answered {line[:100]!r}, which is no answer")
        return answer

    def close(self) -> None:
        """End the process and what it started; safe to call twice."""
        if self._ended:
            return
        self._ended = True
        with contextlib.suppress(ProcessLookupError):  # the group outlives its leader
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._errors):
            assert file is not None
            with contextlib.suppress(BrokenPipeError):
                file.close()

    def _memory_bytes(self) -> int:
        total = 0
        with contextlib.suppress(psutil.NoSuchProcess):
            whole = psutil.Process(self._process.pid)
            for process in (whole, *whole.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += process.memory_info().rss
        return total

    def _epitaph(self) -> str:
        code = self._process.wait()
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - 2000))
        lines = self._errors.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"ended with {how}{': ' if last else ''}{last[:300]}"
