"""What runs inside the job of a sweep's member, on whatever machine that is: `python -m esper.sweep.job FOLDER`."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from esper.configs import TolariaConfig
from esper.configs.identity import checkpoints_folder
from esper.errors import EsperError
from esper.launch.exits import line_of
from esper.sweep.manifest import Member

__all__ = ["MemberJob"]


class MemberJob:
    """A member as a job: begun anew after every requeue, it goes on where the run stands.

    Hydra has no part in it: the configuration is the one frozen at submission.

    Args:
        folder: the member's folder in `.sweep`.
        job_name: what SLURM is to call the job, once it has begun; an array has one name for all until then.
    """

    def __init__(self, folder: Path, *, job_name: str | None = None) -> None:
        self.folder = folder
        self.job_name = job_name

    def __call__(self) -> None:
        """Run to the end, or until SLURM takes the machine away; then ask SLURM to requeue the job.

        Raises:
            SystemExit: the job did not finish; SLURM is to see that.
        """
        requeue = signal.getsignal(signal.SIGUSR2)  # submitit's, which counts the timeouts; the run puts its own there
        member = Member.read(self.folder)
        os.chdir(member.cwd)
        from esper.launch.run import run
        from esper.tolaria.ranks import joined

        try:
            ranks = joined()
            config = ranks.first(lambda: _begin(member, job_name=self.job_name))
            outcome = run(config, member.run_dir, sibling=lambda arm: member.sweep_dir / member.siblings[arm])
        except Exception as error:  # of several processes, in the one that fails first
            traceback.print_exc()
            member.end("failed", reason=line_of(error))
            raise SystemExit(error.exit_code if isinstance(error, EsperError) else 1) from None
        if not ranks.is_first:
            return  # a step of which one process fails is ended, and the first one has more to do
        if outcome.exit_code == 0:
            member.end("finished", metric=outcome.metric)
            return
        number = outcome.exit_code - 128
        if number == signal.SIGUSR2 and callable(requeue):
            try:
                requeue(number, None)
            except Exception as error:  # there were too many timeouts
                member.end("interrupted", reason=line_of(error))
                raise SystemExit(outcome.exit_code) from None
        if number == signal.SIGTERM and _is_preempted():
            subprocess.run(["scontrol", "requeue", str(_job_id())], check=True, timeout=60)
        else:
            member.end("interrupted", reason=signal.Signals(number).name)
        raise SystemExit(outcome.exit_code)

    def checkpoint(self) -> Any:
        """What submitit puts in the queue after a timeout: the same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _begin(member: Member, *, job_name: str | None) -> TolariaConfig:
    """Write down that the job begins; returns what it is to run."""
    if job_name and (job_id := _job_id()):
        # A name is not worth failing for.
        update = ["scontrol", "update", f"JobId={job_id}", f"JobName={job_name}"]
        subprocess.run(update, check=False, timeout=60, capture_output=True)
    config = member.config()
    if member.began:
        config = _going_on(config, member.run_dir)
    member.begin()
    return config


def _going_on(config: TolariaConfig, run_dir: Path) -> TolariaConfig:
    """The configuration for a job that begins again: the run goes on, wherever it was told to begin at first."""
    from esper.tolaria.checkpoints.resume import rewind_target

    folder = checkpoints_folder(run_dir, checkpoint_dir=config.checkpoint.checkpoint_dir)
    went_back = rewind_target(config.checkpoint, folder) is not None
    resume_from = None if went_back else config.checkpoint.resume_from
    checkpoint = dataclasses.replace(config.checkpoint, auto_resume=True, resume_from=resume_from)
    return dataclasses.replace(config, fresh=False, checkpoint=checkpoint)


def _job_id() -> str | None:
    """SLURM's id of this job; None outside of SLURM.

    With the array's index: the last element has the same number as the array, which would then be meant as a whole.
    """
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{index}" if array else os.environ.get("SLURM_JOB_ID")


def _is_preempted() -> bool:
    """Whether SLURM preempts this job, rather than someone cancelling it.

    Within the grace time of a preemption the job is RUNNING and has a PreemptTime: if it just ended, SLURM would take
    it for done. A job without grace, or one that is cancelled, is COMPLETING by now, and SLURM knows what follows.
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
