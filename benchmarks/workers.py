"""Worker processes that share a queue of trainings, several to a GPU, and a file of rows, one a training."""

from __future__ import annotations

import contextlib
import fcntl
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch

__all__ = ["FAILED", "append", "locked", "read_rows", "reserved", "work_in_parallel"]

FAILED = 3
"""Exit code of a worker whose training failed; another one takes its place."""
_WAIT_S = 3600.0
"""Longest single wait: the system refuses one of some weeks."""
_GRACE_S = 15.0
"""How long a run may take to stop after the time limit."""


def read_rows(path: Path, keys: Collection[str]) -> list[dict[str, Any]]:
    """The rows of a file, in order; a line that was cut off is left out.

    Args:
        path: the file.
        keys: what every row has.

    Raises:
        SystemExit: the file cannot be read, or holds something else.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SystemExit(f"{path}: cannot be read: {getattr(error, 'strerror', error)}") from None
    rows = []
    for line in lines:
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    is_other = any(not isinstance(row, dict) or not row.keys() >= {*keys} for row in rows)
    if is_other or (len(lines) > 1 and not rows):
        raise SystemExit(f"{path}: its lines are not rows with {', '.join(keys)}")
    return rows


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Context manager: no other process is in it with the same file."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def reserved(path: Path) -> Iterator[bool]:
    """Context manager, which does not wait: whether no other process is in it with the same file."""
    with path.open("a") as file:
        is_free = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            is_free = False
        yield is_free


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row to a file that is locked."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def work_in_parallel(
    run_next: Callable[[], bool], *, device: str, workers_per_gpu: int, deadline: float, folder: Path | None = None
) -> None:
    """Keep the workers going, and stop those that are still busy at the deadline.

    Args:
        run_next: trains what is next, in a worker; returns whether there may be more. It can be pickled.
        device: cuda, or cpu: as many workers as `workers_per_gpu`.
        workers_per_gpu: how many.
        deadline: Unix time.
        folder: working directory of the workers; None: this one.
    """
    spawn = multiprocessing.get_context("spawn")

    def start(gpu: str) -> SpawnProcess:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # of the new process; this one uses none
        worker = spawn.Process(target=_work, args=(run_next, folder))
        worker.start()
        return worker

    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # workers must not outlive this process
    workers = {start(gpu): gpu for gpu in _gpus(device) * workers_per_gpu}
    try:
        while workers and (left := deadline - time.time()) > 0:
            connection.wait([worker.sentinel for worker in workers], timeout=min(left, _WAIT_S))
            for worker in [worker for worker in workers if not worker.is_alive()]:
                gpu = workers.pop(worker)
                if worker.exitcode == FAILED:
                    workers[start(gpu)] = gpu
    finally:
        for worker in workers:
            worker.terminate()
        end = time.time() + _GRACE_S
        for worker in workers:
            worker.join(max(0.0, end - time.time()))
            worker.kill()


def _work(run_next: Callable[[], bool], folder: Path | None) -> None:
    torch.set_num_threads(1)
    if folder is not None:
        os.chdir(folder)
    while run_next():
        torch.compiler.reset()  # type: ignore[no-untyped-call]  # what was compiled belongs to the last network


def _gpus(device: str) -> list[str]:
    if device == "cpu":
        return [""]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else list(map(str, range(torch.cuda.device_count())))
    if not gpus:
        raise SystemExit("--device=cuda: this machine has no usable GPU; use --device=cpu")
    return gpus
