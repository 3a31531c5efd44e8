"""The job of a sweep's member, on whatever machine it runs: `python -m esper.sweep.job FOLDER`."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esper import hanging, stopping
from esper.configs import TolariaConfig
from esper.configs.identity import checkpoints_folder
from esper.configs.rank_env import rank_env
from esper.errors import EsperError, RankError
from esper.launch.exits import error_line, print_traceback
from esper.sweep.manifest import Member

__all__ = ["NOT_BEGUN", "MemberJob", "begin", "end_stopped"]

NOT_BEGUN = "cancelled before it began"


class MemberJob:
    """Runs a member; SLURM may start the job several times, and the run then resumes.

    Hydra is not involved: the configuration was frozen at submission.

    Args:
        folder: the member's folder in `.sweep`.
        job_name: name that the job gives itself in SLURM; until then all jobs of an array share one name.
    """

    def __init__(self, folder: Path, *, job_name: str | None = None) -> None:
        self.folder = folder
        self.job_name = job_name

    def __call__(self) -> None:
        """Run to the end, or until SLURM stops the job; then requeue it.

        Raises:
            SystemExit: the run did not finish; SLURM reads the exit code.
        """
        # submitit's handlers, which count the timeouts and requeue.
        requeue: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}
        member = Member.read(self.folder)

        def last_words(status: str, why: str) -> bool:
            number = stopping.received()
            if rank_env().rank == 0 and number is not None:
                end_stopped([member], number, requeue.get(number), reason=why)
            elif rank_env().rank == 0:
                member.end(status, reason=why)
            return True

        with stopping.handled(), hanging.watched(last_words):
            try:
                self._run(member)
                return
            except stopping.Stopped as stopped:
                number = stopped.number
            except KeyboardInterrupt:
                number = signal.SIGINT
            if rank_env().rank > 0:
                return  # a failing rank would make SLURM end the step while rank 0 still works
            end_stopped([member], number, requeue.get(number), reason=stopping.name_of(number))
            raise SystemExit(128 + number)

    def _run(self, member: Member) -> None:
        os.chdir(member.cwd)
        from esper.launch.run import run
        from esper.tolaria.ranks import init_ranks

        try:
            ranks = init_ranks()
            config = ranks.on_rank0(lambda: begin(member, job_name=self.job_name))
            outcome = run(config, member.run_dir, sibling=lambda arm: member.sweep_dir / member.siblings[arm])
        except Exception as error:  # raised on the first rank that fails
            if isinstance(error, RankError):
                stopping.check()  # then the other rank was stopped too
            with contextlib.suppress(OSError):  # of a full disk: the exit code tells
                print_traceback()
            with contextlib.suppress(EsperError):
                member.end("failed", reason=error_line(error))
            raise SystemExit(error.exit_code if isinstance(error, EsperError) else 1) from None
        if outcome.exit_code > 128:
            raise stopping.Stopped(outcome.exit_code - 128)
        if ranks.is_rank0:
            member.end("finished", metric=outcome.metric)

    def checkpoint(self) -> Any:
        """The submission that submitit requeues after a timeout: the same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def end_stopped(members: Sequence[Member], number: int, requeue: Any, *, reason: str) -> None:
    """Requeue the job that a signal stopped, or record that it ended.

    Args:
        members: those of the job that have not ended.
        requeue: submitit's handler of this signal, if it has one.

    Raises:
        SystemExit: submitit's, after it has requeued the job.
    """
    if callable(requeue):
        try:
            requeue(number, None)
        except Exception as error:  # too many timeouts
            _interrupt(members, error_line(error))
    elif number == signal.SIGTERM and _is_preempted():
        subprocess.run(["scontrol", "requeue", str(_job_id())], check=True, timeout=60)
    else:
        _interrupt(members, reason)


def _interrupt(members: Sequence[Member], reason: str) -> None:
    for member in members:
        has_waited = len(members) > 1 and not member.began  # for others of its job
        member.end("interrupted", reason=NOT_BEGUN if has_waited else reason)


def begin(member: Member, *, job_name: str | None) -> TolariaConfig:
    """Record that the job begins; returns the configuration to run."""
    if job_name and (job_id := _job_id()):
        update = ["scontrol", "update", f"JobId={job_id}", f"JobName={job_name}"]
        subprocess.run(update, check=False, timeout=60, capture_output=True)  # only cosmetic
    config = member.config()
    if member.began:
        config = _resumed(config, member.run_dir)
    member.begin()
    return config


def _resumed(config: TolariaConfig, run_dir: Path) -> TolariaConfig:
    """The configuration of a requeued job: it resumes its own run and does not start over or rewind again."""
    from esper.tolaria.checkpoints.resume import rewind_target

    folder = checkpoints_folder(run_dir, checkpoint_dir=config.checkpoint.checkpoint_dir)
    has_rewound = rewind_target(config.checkpoint, folder) is not None
    resume_from = None if has_rewound else config.checkpoint.resume_from
    checkpoint = dataclasses.replace(config.checkpoint, auto_resume=True, resume_from=resume_from)
    return dataclasses.replace(config, fresh=False, checkpoint=checkpoint)


def _job_id() -> str | None:
    """SLURM's id of this job, ARRAY_INDEX if it is of an array; None outside of SLURM.

    The last job of an array has the array's own number as its plain id, which scontrol takes for the whole array.
    """
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{index}" if array else os.environ.get("SLURM_JOB_ID")


def _is_preempted() -> bool:
    """Whether SLURM preempts this job, as opposed to someone cancelling it.

    In the grace time of a preemption the job is RUNNING and has a PreemptTime; it must requeue itself, because SLURM
    counts a job that exits then as done. A job that is preempted without grace, or cancelled, is COMPLETING by now,
    and SLURM does the rest.
    """
    job_id = _job_id()
    if job_id is None:
        return False
    shown = subprocess.run(
        ["scontrol", "show", "job", "--oneliner", job_id], check=False, timeout=60, capture_output=True, text=True
    ).stdout
    preempted = re.search(r"\bPreemptTime=(?!None)\S", shown)
    return re.search(r"\bJobState=RUNNING\b", shown) is not None and preempted is not None


if __name__ == "__main__":
    MemberJob(Path(sys.argv[1]))()
