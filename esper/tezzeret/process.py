"""A child process that may crash, hang or use too much memory without harm to its parent."""

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
from pathlib import Path
from typing import Any

import psutil

__all__ = ["ProcessFault", "WorkerProcess", "WorkerStopped"]

_POLL_S = 0.02


class ProcessFault(Exception):  # noqa: N818
    """The process must be closed; `status` is crashed, hung or too_large, the message says why."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class WorkerStopped(Exception):  # noqa: N818
    """Waiting for the process was cancelled by a stop."""


class WorkerProcess:
    """Owner of a process that reads and writes lines of JSON; `close` kills it and its children.

    Args:
        command: program and arguments.
        stop: cancels a `read` when set.
    """

    def __init__(self, command: Sequence[str], *, stop: threading.Event) -> None:
        self._stop = stop
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,  # a process group, so that its compilers are killed with it
        )
        self._unread = b""
        self._closed = False

    def write(self, content: dict[str, Any]) -> None:
        """Send a line; if the process has died, the next `read` raises."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(content).encode() + b"\n")
            self._process.stdin.flush()

    def clock(self) -> float:
        """Monotonic seconds, without those in which the process waited for a CPU: a busy machine is not a hang.

        Where the system does not tell (it is not Linux), waiting counts.
        """
        waited_s = 0.0
        with contextlib.suppress(OSError, ValueError, IndexError):
            waited_s = int(Path(f"/proc/{self._process.pid}/schedstat").read_text().split()[1]) / 1e9
        return time.monotonic() - waited_s

    def read(self, *, deadline: float, memory_bytes: int | None = None) -> dict[str, Any]:
        """Wait for the next line.

        A reply that has arrived is read even after the deadline, and a process that uses too much memory is too large,
        however long it took.

        Args:
            deadline: in seconds of `clock`.
            memory_bytes: limit on the resident memory of the process and its children.

        Raises:
            ProcessFault: it died, passed the deadline, or exceeded the memory limit.
            WorkerStopped: `stop` was set.
        """
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if self._stop.is_set():
                    raise WorkerStopped
                if selector.select(_POLL_S):
                    received = os.read(pipe, 65536)
                    if not received:
                        raise ProcessFault("crashed", self._exit_message())
                    self._unread += received
                    if b"\n" in received:
                        break
                if memory_bytes is not None and self._memory_bytes() > memory_bytes:
                    raise ProcessFault("too_large", f"used more than {memory_bytes / 2**20:,.0f} MiB")
                if self.clock() > deadline:
                    raise ProcessFault("hung", "no reply")
        line, _, self._unread = self._unread.partition(b"\n")
        try:
            reply = json.loads(line)
        except ValueError:
            reply = None
        if not isinstance(reply, dict):
            raise ProcessFault("crashed", f"invalid reply {line[:100]!r}")
        return reply

    def close(self) -> None:
        """Kill the process and its children; safe to call twice."""
        if self._closed:
            return
        self._closed = True
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
            worker = psutil.Process(self._process.pid)
            for process in (worker, *worker.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += process.memory_info().rss
        return total

    def _exit_message(self) -> str:
        code = self._process.wait()
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - 2000))
        lines = self._errors.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        message = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        return f"{message}: {last[:300]}" if last else message
