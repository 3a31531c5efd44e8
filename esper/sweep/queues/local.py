"""Sweep members as processes on this machine.

A background process, `python -m esper.sweep.queues.local`, starts them; it outlives the launcher. The job of a
member is that process until the member has one of its own, which may outlive it.
"""

from __future__ import annotations

import contextlib
import functools
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
from typing import Any, ClassVar

import psutil

from esper.configs import TolariaConfig
from esper.configs.schema import setting
from esper.errors import WriteError
from esper.sweep.job import NOT_BEGUN
from esper.sweep.manifest import Job, Member, members_of
from esper.sweep.queues.base import JobState, Queue, QueueOptions

__all__ = ["LocalOptions", "LocalQueue", "gpus_here"]


@dataclass(kw_only=True)
class LocalOptions(QueueOptions):
    """`hydra.launcher` of `hydra/launcher=local`."""

    jobs: int | None = setting(None, "how many runs at a time; null: one for each GPU, or one", low=1)


class LocalQueue(Queue):
    """Jobs that are processes of this machine, so many at a time."""

    name = "local"
    options_type: ClassVar[type[QueueOptions]] = LocalOptions
    runs_here = True
    requests_gpus = False
    options: LocalOptions

    def __init__(self, options: LocalOptions) -> None:
        self.options = options

    def require(self, configs: Sequence[TolariaConfig] = ()) -> None:
        """Nothing is required."""

    def describe(self) -> str:
        """How many runs at a time, and on how many GPUs, in one line."""
        gpus = gpus_here()
        return f"this machine, {self._num_jobs(gpus)} at a time" + (f", one of {len(gpus)} GPUs each" if gpus else "")

    def submit(self, levels: Sequence[Sequence[Member]], *, after: Sequence[Job]) -> None:
        """Start the background process, which runs the levels one after the other once the jobs in `after` ended."""
        gpus = gpus_here()
        num_jobs = self._num_jobs(gpus)
        request = {
            "queue": self.name,
            "program": self.program(),
            "levels": [[[str(one.folder) for one in job] for job in self.jobs_of(level, num_jobs)] for level in levels],
            "after": [job.id for job in after],
            "busy": _busy(levels),
            "num_jobs": num_jobs,
            "gpus": gpus,
        }
        with (levels[0][0].folder.parent / f"{self.name}.log").open("ab") as log:
            runner = subprocess.Popen(
                [sys.executable, "-m", "esper.sweep.queues.local"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C and a closed terminal end the launcher only
            )
        assert runner.stdin is not None
        job = Job(queue=self.name, id=_job_id(runner.pid))
        for members in levels:
            for member in members:
                member.set_job(job)
        runner.stdin.write(json.dumps(request).encode())
        runner.stdin.close()

    def program(self) -> list[str]:
        """Module and arguments of a job's process, to which the folders of its members are added."""
        return ["esper.sweep.job"]

    def jobs_of(self, members: Sequence[Member], num_jobs: int) -> list[Sequence[Member]]:  # noqa: ARG002
        """The members of each job, of those that may run at the same time."""
        return [[member] for member in members]

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Stop the processes: each run saves a checkpoint, and no other run begins."""
        processes = []
        for job_id in {job.id for job in jobs}:
            with contextlib.suppress(psutil.NoSuchProcess):  # it ends just now
                if _is_alive(job_id):
                    processes.append(_process(job_id))
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.parent() not in processes:  # which stops its children itself
                    process.terminate()

    @staticmethod
    def job_states(jobs: Sequence[tuple[Member, Job]]) -> list[JobState]:
        """State of each member's job."""
        return [_job_state(member, job) for member, job in jobs]

    @staticmethod
    def log_file(member: Member, job: Job) -> Path:  # noqa: ARG004
        """The file that holds the output of the member's job."""
        return member.folder / "job.log"

    def _num_jobs(self, gpus: Sequence[str]) -> int:
        return self.options.jobs or len(gpus) or 1


def _job_state(member: Member, job: Job) -> JobState:
    if not _is_alive(job.id) or member.outcome():
        return JobState(state="ended", reason="its process ended")
    return JobState(state="running" if member.began else "waiting")


def _job_id(pid: int) -> str:
    """Id of the job that is a process: PID@CREATION_TIME."""
    return f"{pid}@{psutil.Process(pid).create_time():.2f}"


def _process(job_id: str) -> psutil.Process:
    return psutil.Process(int(job_id.partition("@")[0]))


def _is_alive(job_id: str) -> bool:
    """Whether the process of a job is still running."""
    try:
        process = _process(job_id)
        return process.status() != psutil.STATUS_ZOMBIE and _job_id(process.pid) == job_id
    except psutil.NoSuchProcess:
        return False


def _busy(levels: Sequence[Sequence[Member]]) -> list[str]:
    """The jobs of the sweep's other members that run: those of a background process that was killed run on."""
    submitted = {member.name for members in levels for member in members}
    others = [member for member in members_of(levels[0][0].sweep_dir) if member.name not in submitted]
    jobs = [job for member in others if member.began and (job := member.job()) is not None]
    return list(dict.fromkeys(job.id for job in jobs if "@" in job.id and _is_alive(job.id)))


class _Runner:
    """Runs jobs in the background process, at most `num_jobs` at a time with the `busy` ones, until SIGTERM.

    Args:
        num_jobs: how many.
        gpus: each job gets one of them.
        busy: ids of jobs of another such process.
        queue: name of the queue.
        program: see `LocalQueue.program`.
    """

    def __init__(
        self,
        *,
        num_jobs: int,
        gpus: list[str],
        busy: Sequence[str],
        queue: str,
        program: Sequence[str],
    ) -> None:
        self._queue, self._program = queue, program
        self._free_workers = list(range(num_jobs))
        self._gpus = gpus
        self._num_threads = max(1, (os.cpu_count() or 1) // num_jobs)
        self._running: list[tuple[Sequence[Member], subprocess.Popen[bytes], int]] = []
        self._busy = {job_id: self._take_worker_of(job_id) for job_id in busy[:num_jobs]}
        self._is_stopping = False
        signal.signal(signal.SIGTERM, self._stop)

    def run(self, levels: list[list[list[Member]]], *, after: list[str]) -> None:
        """Run the jobs of each level, given by their members, when those of the level before and `after` have ended."""
        while any(map(_is_alive, after)) and not self._is_stopping:
            time.sleep(0.5)
        for jobs in levels:
            for members in jobs:
                while not self._free_workers and not self._is_stopping:
                    self._reap()
                if self._is_stopping:
                    _end(members, "interrupted", reason=NOT_BEGUN)
                else:
                    self._start(members)
            while self._running:
                self._reap()

    def _start(self, members: Sequence[Member]) -> None:
        worker = self._free_workers.pop(0)
        environment = {"OMP_NUM_THREADS": str(self._num_threads)} | os.environ
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[worker % len(self._gpus)]
        try:
            with _log_of(members).open("ab") as log:
                process = subprocess.Popen(
                    [sys.executable, "-u", "-m", *self._program, *(str(member.folder) for member in members)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                )
        except OSError as error:  # e.g. a full disk; the next one may start
            self._free_workers.append(worker)
            _end(members, "failed", reason=f"its job cannot start: {error.strerror or error}")
            return
        self._running.append((members, process, worker))
        if self._is_stopping:  # since before it was among those that `_stop` ends
            process.terminate()
        with contextlib.suppress(WriteError):  # then the job on record is the runner's
            for member in members:
                member.set_job(Job(queue=self._queue, id=_job_id(process.pid)))

    def _take_worker_of(self, job_id: str) -> int:
        """The worker that has the GPU of a job."""
        gpu = None
        with contextlib.suppress(psutil.Error):
            gpu = _process(job_id).environ().get("CUDA_VISIBLE_DEVICES")
        has_it = [worker for worker in self._free_workers if self._gpus and self._gpus[worker % len(self._gpus)] == gpu]
        worker = (has_it or self._free_workers)[0]
        self._free_workers.remove(worker)
        return worker

    def _reap(self) -> None:
        time.sleep(0.1)
        for job_id in [job_id for job_id in self._busy if not _is_alive(job_id)]:
            self._free_workers.append(self._busy.pop(job_id))
        for running in list(self._running):
            members, process, worker = running
            if process.poll() is None:
                continue
            self._running.remove(running)
            self._free_workers.append(worker)
            left = [member for member in members if not member.outcome()]
            if self._is_stopping and process.returncode == -signal.SIGTERM:  # it had not begun to handle the signal
                _end(left, "interrupted", reason=NOT_BEGUN)
            else:
                _end(left, "lost", reason=f"its process exited with code {process.returncode}")

    def _stop(self, *_: Any) -> None:
        self._is_stopping = True
        for _members, process, _worker in self._running:
            process.terminate()


def _log_of(members: Sequence[Member]) -> Path:
    """Output of a job's process: of one member in its folder, of several in that of the sweep."""
    return members[0].folder / "job.log" if len(members) == 1 else members[0].folder.parent / "jobs.log"


def _end(members: Sequence[Member], status: str, *, reason: str) -> None:
    """Record how members ended; on a full disk in the runner's log alone."""
    for member in members:
        try:
            member.end(status, reason=reason)
        except WriteError as error:
            with contextlib.suppress(OSError):
                sys.stderr.write(f"{member.name}: {status}: {reason} ({error})\n")


def gpus_here() -> list[str]:
    """The GPUs that this process may use, in the notation of CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    return [str(index) for index in range(_num_gpus())]


@functools.cache  # a launch asks several times
def _num_gpus() -> int:
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], check=False, timeout=60, capture_output=True, text=True)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def _main() -> None:
    request = json.load(sys.stdin)
    folders, after = request.pop("levels"), request.pop("after")
    levels = [[[Member.read(Path(folder)) for folder in job] for job in level] for level in folders]
    _Runner(**request).run(levels, after=after)


if __name__ == "__main__":
    _main()
