"""Signals that stop a run: before, during and after training."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from esper import stopping

ROOT = Path(__file__).resolve().parents[1]
COMMAND = "import sys; sys.argv[0] = 'esper-train'; from esper.train import main; main()"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `esper-train` in a folder of its own."""
    processes = []

    def started(*arguments: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *arguments],
            cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        processes.append(process)
        return process

    yield started
    for process in processes:
        process.kill()
        process.communicate()


def catches(number: int, pid: int) -> bool:
    caught = re.search(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), flags=re.MULTILINE)
    return caught is not None and bool(int(caught.group(1), 16) >> (number - 1) & 1)


def wait_until(is_so: Callable[[], object], *, within_s: float = 60) -> None:
    until = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "made"),
    [
        (signal.SIGTERM, None),  # its first line
        pytest.param(signal.SIGUSR1, "train.log", marks=pytest.mark.long),
        (signal.SIGHUP, ".lock"),
    ],
)
def test_a_signal_before_training_ends_the_command_and_leaves_nothing_behind(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]], number: signal.Signals, made: str | None
):
    process = start("experiment=debug")
    wait_until(lambda: list(tmp_path.glob(f"outputs/debug/*/{made}")) if made else catches(number, process.pid))
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (128 + number, "")
    assert "validation" not in out
    assert not list(tmp_path.iterdir())


def test_an_ignored_signal_stays_ignored_and_all_handlers_are_restored():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)}
    for number in (signal.SIGHUP, signal.SIGUSR1):
        handlers[number] = signal.signal(number, signal.SIG_IGN)
    try:
        with stopping.handled():
            assert signal.getsignal(signal.SIGTERM) != handlers[signal.SIGTERM]
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGUSR1)
            stopping.check()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert {number: signal.getsignal(number) for number in handlers} == {
            **handlers, signal.SIGHUP: signal.SIG_IGN, signal.SIGUSR1: signal.SIG_IGN
        }  # fmt: skip
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_the_first_signal_ends_work_before_training_and_is_told_to_threads():
    with stopping.handled():
        with pytest.raises(stopping.Stopped) as ended:
            signal.raise_signal(signal.SIGHUP)
        assert ended.value.code == 129
        signal.raise_signal(signal.SIGTERM)  # SLURM sends several: the first one is being obeyed
        with pytest.raises(stopping.Stopped):
            stopping.check()
    stopping.check()
