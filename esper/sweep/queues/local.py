"""Members of a sweep on this machine: a process of its own runs them, and goes on when the launcher has gone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from esper.configs.schema import setting
from esper.sweep.manifest import Job, Member

__all__ = ["LocalOptions", "LocalQueue", "is_alive"]


@dataclass(kw_only=True)
class LocalOptions:
    """`hydra.launcher` of `hydra/launcher=local`."""

    jobs: int | None = setting(None, "how many runs at a time; null: one for each GPU, or one", low=1)
    poll_s: float = setting(1.0, "seconds between two looks at the runs", above=0)
    on_interrupt: str = setting("ask", "what Ctrl-C does with the runs", choices=("ask", "leave", "cancel"))


class LocalQueue:
    """Starts the process that runs the members, and stops it."""

    name = "local"

    def __init__(self, options: LocalOptions) -> None:
        self.options = options

    def require(self) -> None:
        """Nothing is needed."""

    def describe(self) -> str:
        """What is done, in one line."""
        gpus = _gpus()
        return f"this machine, {self._num_jobs(gpus)} at a time" + (f", a GPU each of {len(gpus)}" if gpus else "")

    def submit(self, waves: Sequence[Sequence[Member]], *, after: Sequence[Job]) -> None:
        """Start the waves one after the other, once the jobs in `after` have ended."""
        gpus = _gpus()
        private = waves[0][0].folder.parent
        order = {
            "waves": [[str(member.folder) for member in members] for members in waves],
            "after": [job.id for job in after],
            "jobs": self._num_jobs(gpus),
            "gpus": gpus,
        }
        with (private / "local.log").open("ab") as log:
            runner = subprocess.Popen(
                [sys.executable, "-m", "esper.sweep.queues.local"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C and a closed terminal are for the launcher
            )
        assert runner.stdin is not None
        for members in waves:
            for member in members:
                member.set_job(Job(queue=self.name, id=_identity(runner.pid)))
        runner.stdin.write(json.dumps(order).encode())
        runner.stdin.close()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Stop the processes: each run saves first, and no other begins."""
        for job_id in {job.id for job in jobs}:
            if is_alive(job_id):
                os.kill(int(job_id.partition("@")[0]), signal.SIGTERM)

    def _num_jobs(self, gpus: Sequence[str]) -> int:
        return self.options.jobs or len(gpus) or 1


def is_alive(job_id: str) -> bool:
    """Whether the process is still there that a job's id names."""
    pid, _, created = job_id.partition("@")
    try:
        process = psutil.Process(int(pid))
        return process.status() != psutil.STATUS_ZOMBIE and f"{process.create_time():.2f}" == created
    except psutil.NoSuchProcess:
        return False


class _Runner:
    """The process's work: start members, reap them, pass on that they are to stop."""

    def __init__(self, *, jobs: int, gpus: list[str]) -> None:
        self._free = list(range(jobs))
        self._gpus = gpus
        self._threads = max(1, (os.cpu_count() or 1) // jobs)
        self._running: list[tuple[Member, subprocess.Popen[bytes], int]] = []
        self._is_stopping = False
        signal.signal(signal.SIGTERM, self._stop)

    def run(self, waves: list[list[Member]], *, after: list[str]) -> None:
        while any(map(is_alive, after)) and not self._is_stopping:
            time.sleep(0.5)
        for members in waves:
            for member in members:
                while not self._free and not self._is_stopping:
                    self._reap()
                if self._is_stopping:
                    member.end("interrupted", reason="cancelled before it began")
                else:
                    self._start(member)
            while self._running:
                self._reap()

    def _start(self, member: Member) -> None:
        place = self._free.pop(0)
        environment = {"OMP_NUM_THREADS": str(self._threads)} | os.environ
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[place % len(self._gpus)]
        with (member.folder / "job.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-u", "-m", "esper.sweep.job", str(member.folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )
        self._running.append((member, process, place))

    def _reap(self) -> None:
        time.sleep(0.1)
        for one in list(self._running):
            member, process, place = one
            if process.poll() is None:
                continue
            self._running.remove(one)
            self._free.append(place)
            if not member.outcome():
                member.end("lost", reason=f"its process ended with {process.returncode}")

    def _stop(self, *_: Any) -> None:
        self._is_stopping = True
        for _member, process, _place in self._running:
            process.terminate()


def _identity(pid: int) -> str:
    return f"{pid}@{psutil.Process(pid).create_time():.2f}"


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], check=False, timeout=60, capture_output=True, text=True)
    num_gpus = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    return [str(index) for index in range(num_gpus)]


def _main() -> None:
    order = json.load(sys.stdin)
    waves = [[Member.read(Path(folder)) for folder in folders] for folders in order["waves"]]
    _Runner(jobs=order["jobs"], gpus=order["gpus"]).run(waves, after=order["after"])


if __name__ == "__main__":
    _main()
