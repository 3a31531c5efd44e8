"""A run of a sweep that suspends itself, so that it is there for as long as a test needs it."""

from __future__ import annotations

import contextlib
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from esper.sweep.manifest import Member

STOPS = """
import os, signal, time
from pathlib import Path
from esper import stopping
from esper.tolaria.loop import TrainingLoop

end_epoch = TrainingLoop.end_epoch

def stop_once(loop):
    ended = end_epoch(loop)
    if Path("stop").exists():
        is_held = Path("stop").read_text() == "until a signal"
        Path("stop").unlink()
        os.kill(os.getpid(), signal.SIGSTOP)
        while is_held and stopping.requested() is None:  # which the main thread handles
            time.sleep(0.01)
    return ended

TrainingLoop.end_epoch = stop_once
"""


@pytest.fixture
def stops(tmp_path: Path) -> Iterator[str]:
    """The override with which the first run of a sweep suspends itself after an epoch; see `suspended`.

    A test that writes `until a signal` into the file `stop` has it go on only when it has been told to stop, too.
    """
    (tmp_path / "stops.py").write_text(STOPS)
    (tmp_path / "stop").touch()
    yield "plugins=[stops]"
    for process in psutil.process_iter():  # of a test that failed
        with contextlib.suppress(psutil.Error):
            if process.cwd() == str(tmp_path):
                process.kill()


def suspended(cwd: Path) -> psutil.Process:
    """Wait until a run has suspended itself."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        for file in () if (cwd / "stop").exists() else cwd.glob("outputs/debug/.sweep/*/job.json"):
            with contextlib.suppress(psutil.NoSuchProcess):
                job = Member.read(file.parent).job()
                if job and (run := psutil.Process(int(job.short_id))).status() == psutil.STATUS_STOPPED:
                    return run
        time.sleep(0.05)
    raise AssertionError("no run has suspended itself")


def await_signal(process: psutil.Process, number: signal.Signals) -> None:
    """Wait until a suspended process has been sent a signal."""
    until = time.monotonic() + 120
    pending = re.compile(r"^ShdPnd:\s*(\w+)", re.MULTILINE)
    while not int(pending.findall(Path(f"/proc/{process.pid}/status").read_text())[0], 16) & 1 << number - 1:
        assert time.monotonic() < until
        time.sleep(0.05)
