"""Service processes: starting one in the background, its PID file, stopping it. Imports no torch, to be quick."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from esper.errors import ConfigError, EsperError
from esper.files import write_atomically

__all__ = ["STOP_S", "down", "pid_file", "say_stopping", "start"]

STOP_S = 8.0
"""Time that services have to stop."""
_FOLDER = Path("outputs", "services")
_START_S = 90.0
_END_S = 60.0
"""Time that services which were killed, or are stopping, may take to end, on a busy machine."""
_COMMAND = "import sys; sys.argv[0] = 'esper'; from esper.cli import main; main()"


def start(overrides: Sequence[str], *, only: Sequence[str], name: str | None, policy: Path | None) -> int:
    """Run `esper services up` in the background and wait until it serves; returns the exit code.

    Raises:
        EsperError: it does not start; names its log file.
    """
    name = _valid(name)
    _lock(name).release()  # refused before the log is overwritten
    log = _FOLDER / f"{name}.log"
    options = [
        *(f"--only={service}" for service in only),
        f"--name={name}",
        *([f"--policy={policy}"] if policy else []),
    ]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _COMMAND, "services", "up", *options, *overrides],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        if " on Redis " in (output := log.read_text()):
            sys.stdout.write(f"{output}in the background ({process.pid}); log: {log}; stop: esper services down\n")
            return 0
        time.sleep(0.2)
    process.terminate()
    *_, last_line = log.read_text().strip().splitlines() or ["the service exited without output"]
    error = ConfigError if process.wait() == 2 else EsperError
    raise error(f"{last_line.removeprefix('error: ')} (log: {log})")


def down(name: str | None) -> int:
    """Stop the services started in this folder, all or those of one name; returns the exit code."""
    names = [_valid(name)] if name else sorted(file.stem for file in _FOLDER.glob("*.json"))
    running = {name: process for name in names if (process := _process(name))}
    if not running:
        sys.stdout.write(f"nothing to stop: no services run on this machine from this folder ({_FOLDER})\n")
    code = 0
    for name, process in running.items():
        result = "stopped"
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
            try:
                process.wait(STOP_S + 4)
            except psutil.TimeoutExpired:
                result, code = f"does not stop; kill it with: kill -9 {process.pid}", 1
        sys.stdout.write(f"{name}: {result}\n")
    return code


@contextlib.contextmanager
def pid_file(name: str | None) -> Iterator[str]:
    """Context manager: keep a PID file for `down`, locked so that names are unique; yields the name.

    Raises:
        ConfigError: the name is invalid, or services of this name already run in this folder.
    """
    name = _valid(name)
    lock = _lock(name)
    _write(name, is_stopping=False)
    try:
        yield name
    finally:
        (_FOLDER / f"{name}.json").unlink(missing_ok=True)
        lock.release()


def say_stopping(name: str) -> None:
    """Note in this process's PID file that it is stopping: services that start meanwhile wait for its end."""
    _write(name, is_stopping=True)


def _lock(name: str) -> FileLock:
    """Acquire the lock of a name; waits for the end of services that were killed or are stopping.

    Raises:
        ConfigError: services of this name run.
    """
    _FOLDER.mkdir(parents=True, exist_ok=True)
    lock = FileLock(_FOLDER / f"{name}.lock")
    deadline = time.monotonic() + _END_S
    while True:
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=0)
            return lock
        if (process := _process(name)) is not None and not _is_ending(name, process):
            raise _already_running(name)
        if time.monotonic() > deadline:
            raise _already_running(name)
        time.sleep(0.05)


def _write(name: str, *, is_stopping: bool) -> None:
    content = {
        "pid": os.getpid(),
        "created": psutil.Process().create_time(),
        "host": socket.gethostname(),
        "stopping": is_stopping,
    }
    write_atomically(_FOLDER / f"{name}.json", json.dumps(content) + "\n")


def _is_ending(name: str, process: psutil.Process) -> bool:
    """Whether services are stopping, or were killed: until its memory is released, a killed process is still there."""
    try:
        if json.loads((_FOLDER / f"{name}.json").read_text()).get("stopping"):
            return True
    except FileNotFoundError:  # removed since `_process` has read it
        return True
    except (OSError, ValueError, AttributeError):
        pass
    with contextlib.suppress(OSError):  # it has ended, or this is not Linux
        status = Path(f"/proc/{process.pid}/status").read_text()
        pending = re.search(r"^ShdPnd:\s*([0-9a-f]+)$", status, flags=re.MULTILINE)
        return pending is not None and bool(int(pending[1], 16) >> (signal.SIGKILL - 1) & 1)
    return not process.is_running()


def _process(name: str) -> psutil.Process | None:
    """The running process of a PID file; None if it has ended, is another one by now, or runs on another machine."""
    try:
        content = json.loads((_FOLDER / f"{name}.json").read_text())
        process = psutil.Process(int(content["pid"]))
        is_same = content["host"] == socket.gethostname() and process.create_time() == content["created"]
        is_same = is_same and process.status() != psutil.STATUS_ZOMBIE  # killed, and not yet reaped
    except (OSError, ValueError, KeyError, TypeError, psutil.NoSuchProcess):
        return None
    return process if is_same else None


def _valid(name: str | None) -> str:
    name = name or socket.gethostname()
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ConfigError(f"--name {name}: allowed are letters, digits, `.`, `_` and `-`")
    return name


def _already_running(name: str) -> ConfigError:
    return ConfigError(
        f"services named {name} already run in this folder; stop them with `esper services down`, or give --name"
    )
