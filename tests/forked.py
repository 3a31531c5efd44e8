"""Python commands as processes that start at once: forks of one that has already imported Esper and what it uses.

Each is a process of its own, but spares the seconds of its imports. Where these matter (what is imported when, what is
installed, variables that are read at an import), start Python; also for commands without PyTorch, which start as fast.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

ROOT = Path(__file__).resolve().parents[1]
ESPER_TRAIN = "import sys; sys.argv[0] = 'esper-train'; from esper.train import main; main()"
ESPER = "import sys; sys.argv[0] = 'esper'; from esper.cli import main; main()"
_IMPORTED = (
    *("esper.train", "esper.cli", "esper.launch.run", "esper.tolaria.trainer", "esper.report", "esper.sweep"),
    *("matplotlib.pyplot", "mlflow", "timm", "torch.distributed", "torchvision"),
)
_MAX_BYTES = 1 << 20
_SET_CHILD_SUBREAPER = 36  # of prctl(2)


class ForkedPython(subprocess.Popen[str]):
    """`python -c SCRIPT ARGUMENTS...` with pipes for what it prints.

    `environment`: variables on top of this process's. A fixture ends those that a test leaves behind when it fails.
    """

    started: ClassVar[list[ForkedPython]] = []

    def __init__(
        self, script: str, *arguments: str, cwd: Path, stdin: int = subprocess.DEVNULL, **environment: str
    ) -> None:
        super().__init__(
            [script, *arguments],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(self)

    @classmethod
    def end_all(cls) -> None:
        while cls.started:
            with cls.started.pop() as process:
                process.kill()

    def _execute_child(self, args: list[str], *others: Any) -> None:
        pipes = others[9:15]
        asked = json.dumps({"argv": args, "cwd": str(others[4]), "env": others[5]}).encode()
        assert len(asked) < _MAX_BYTES
        with _adopting_orphans():
            socket.send_fds(_server(), [asked], [pipes[0], pipes[3], pipes[5]])
            self.pid = int(_server().recv(64))
        self._child_created = True
        self._close_pipe_fds(*pipes)


def run(script: str, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run such a command to its end."""
    with ForkedPython(script, *arguments, cwd=cwd, **environment) as process:
        try:
            out, err = process.communicate(timeout=200)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def suspend(process: subprocess.Popen[Any]) -> None:
    """SIGSTOP; returns when each of its threads has come to a halt, which may be in the midst of a write before."""
    process.send_signal(signal.SIGSTOP)
    assert os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)


@contextlib.contextmanager
def _adopting_orphans() -> Iterator[None]:
    """The server's grandchildren become children of this process, which can then wait for them."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_SET_CHILD_SUBREAPER, 1)
    yield
    prctl(_SET_CHILD_SUBREAPER, 0)


@functools.cache
def _server() -> socket.socket:
    """The connection to the process that is forked; it ends with this one."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        process = subprocess.Popen(
            [sys.executable, "-c", f"from tests.forked import serve; exec(serve({its.fileno()}))"],
            cwd=ROOT,
            # PyTorch and MLflow read their levels when they are imported; Esper sets these before.
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "TORCH_CPP_LOG_LEVEL": "ERROR",
                "MLFLOW_LOGGING_LEVEL": "ERROR",
                "MLFLOW_DISABLE_TELEMETRY": "true",
            },
            pass_fds=[its.fileno()],
        )

    @atexit.register
    def close() -> None:
        ours.close()
        process.wait()

    return ours


def serve(descriptor: int) -> str:
    """Fork a process for every request. Only forks return, each with the script that it is to run."""
    for name in _IMPORTED:
        importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the whole group: tests end this process
    connection = socket.socket(fileno=descriptor)
    while True:
        message, streams, _, _ = socket.recv_fds(connection, _MAX_BYTES, 3)
        if not message:
            sys.exit()
        reader, writer = os.pipe()
        if between := os.fork():
            os.waitpid(between, 0)  # its child is an orphan now
            connection.send(os.read(reader, 64))
            for unneeded in (reader, writer, *streams):
                os.close(unneeded)
        elif pid := os.fork():
            os.write(writer, str(pid).encode())
            os._exit(0)
        else:
            break
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background of a shell
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    connection.close()
    os.closerange(3, max(reader, writer, *streams) + 1)
    return _become(json.loads(message))


def _become(asked: dict[str, Any]) -> str:
    """Take over arguments, folder and environment; returns the script."""
    script, *arguments = asked["argv"]
    sys.argv = ["-c", *arguments]
    os.chdir(asked["cwd"])
    tempfile.tempdir = None  # as TMPDIR says now
    os.environ.clear()
    os.environ.update(asked["env"])
    return str(script)
