"""PID files of services, and services that end while others of their name start."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from esper.errors import ConfigError
from esper.services import daemon

# Has much memory to release, which takes time after a kill -9; at SIGTERM it stops a second after it may.
_SERVICE = """
import mmap, pathlib, signal, sys, time
from esper.services.daemon import pid_file, say_stopping
def stop(*_):
    say_stopping("first")
    while not pathlib.Path("may_stop").exists():
        time.sleep(0.01)
    time.sleep(1)
    sys.exit()
signal.signal(signal.SIGTERM, stop)
with pid_file("first"):
    memory = mmap.mmap(-1, 2**30, flags=mmap.MAP_PRIVATE)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    for page in range(0, len(memory), mmap.PAGESIZE):
        memory[page] = 1
    print("serving", flush=True)
    while True:
        time.sleep(60)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "outputs" / "services"


@contextlib.contextmanager
def service() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", _SERVICE], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"serving\n"
            yield process
        finally:
            process.kill()


def test_a_killed_service_that_was_not_reaped_yet_does_not_run(folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as child:
        try:
            process = psutil.Process(child.pid)
            content = {"pid": child.pid, "created": process.create_time(), "host": socket.gethostname()}
            folder.mkdir(parents=True)
            (folder / "first.json").write_text(json.dumps(content))
            assert daemon._process("first") == process
        finally:
            child.kill()
        while process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        assert daemon._process("first") is None


@pytest.mark.skipif(sys.platform != "linux", reason="a process that was killed is recognised on Linux")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_services_start_while_those_of_their_name_end(folder: Path, number: signal.Signals) -> None:
    with service() as before:
        os.kill(before.pid, number)
        while number == signal.SIGTERM and "true" not in (folder / "first.json").read_text():
            time.sleep(0.01)
        Path("may_stop").touch()
        with pytest.raises(ConfigError, match="invalid choice"):  # not that they already run
            daemon.start([], only=["none"], name="first", policy=None)
        with daemon.pid_file("first"):
            assert json.loads((folder / "first.json").read_text())["pid"] == os.getpid()


def test_services_that_have_removed_their_pid_file_are_ending(folder: Path) -> None:
    with daemon.pid_file("first"):
        process = psutil.Process()
        assert not daemon._is_ending("first", process)
        (folder / "first.json").unlink()  # the last that they do before they let go of the lock
        assert daemon._is_ending("first", process)


def test_services_that_run_are_refused_at_once_and_keep_their_log(folder: Path) -> None:
    with service() as running:
        (folder / "first.log").write_text("kept")
        began = time.monotonic()
        with pytest.raises(ConfigError, match="services named first already run in this folder"):
            daemon.start([], only=[], name="first", policy=None)
        with pytest.raises(ConfigError, match="already run"), daemon.pid_file("first"):
            pass
        assert time.monotonic() - began < daemon._END_S / 2
        assert running.poll() is None
    assert (folder / "first.log").read_text() == "kept"
