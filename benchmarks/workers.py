"""Worker processes that share a queue of trainings, several to a GPU, and a file of rows, one a training."""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch

__all__ = ["FAILED", "Workers", "append", "locked", "read_rows", "reserved"]

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


class Workers:
    """Context manager: processes that share trainings; until `work` they import and start CUDA, while this one plans.

    Args:
        device: cuda, or cpu: as many workers as `per_gpu`.
        per_gpu: how many.
        folder: working directory of the workers; None: this one.
        imports: modules that trainings need besides.

    Attributes:
        num_dead: workers that ended otherwise than by a training that failed, such as for want of memory.
    """

    def __init__(self, *, device: str, per_gpu: int, folder: Path | None = None, imports: Sequence[str] = ()) -> None:
        self.num_dead = 0
        self._gpus = _gpus(device) * per_gpu
        self._arguments = device, folder, ("esper.launch.run", *imports)
        self._workers: dict[SpawnProcess, tuple[str, Connection]] = {}

    def __enter__(self) -> Workers:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # workers must not outlive this process
        for gpu in self._gpus:
            self._start(gpu)
        return self

    def work(self, run_next: Callable[[], bool], *, deadline: float) -> None:
        """Keep the workers going, and stop those that are still busy at the deadline.

        Args:
            run_next: trains what is next, in a worker; returns whether there may be more. It can be pickled.
            deadline: Unix time.
        """
        for worker in list(self._workers):
            self._send(worker, run_next)
        while self._workers and (left := deadline - time.time()) > 0:
            connection.wait([worker.sentinel for worker in self._workers], timeout=min(left, _WAIT_S))
            for worker in [worker for worker in self._workers if not worker.is_alive()]:
                gpu, _ = self._workers.pop(worker)
                if worker.exitcode == FAILED:
                    self._send(self._start(gpu), run_next)
                elif worker.exitcode:
                    self.num_dead += 1
                    print(f"a worker has died, exit code {worker.exitcode}", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.terminate()
        end = time.time() + _GRACE_S
        for worker in self._workers:
            worker.join(max(0.0, end - time.time()))
            worker.kill()

    def _start(self, gpu: str) -> SpawnProcess:
        spawn = multiprocessing.get_context("spawn")
        receiver, sender = spawn.Pipe(duplex=False)
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # of the new process; this one uses none
        worker = spawn.Process(target=_work, args=(receiver, *self._arguments))
        worker.start()
        receiver.close()
        self._workers[worker] = gpu, sender
        return worker

    def _send(self, worker: SpawnProcess, run_next: Callable[[], bool]) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has failed, and said so
            self._workers[worker][1].send(run_next)


def _work(tasks: Connection, device: str, folder: Path | None, imports: Sequence[str]) -> None:
    torch.set_num_threads(1)
    if folder is not None:
        os.chdir(folder)
    for module in imports:
        importlib.import_module(module)
    if device == "cuda":
        torch.zeros(1, device=device)
    try:
        run_next = tasks.recv()
    except (EOFError, KeyboardInterrupt):  # the parent is gone, or goes
        return
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
