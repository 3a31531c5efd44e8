"""Members of a sweep as jobs of SLURM: submitted as arrays through submitit, watched through squeue."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from esper.configs.schema import setting
from esper.errors import ConfigError, RunError
from esper.sweep.job import MemberJob
from esper.sweep.labels import labels
from esper.sweep.manifest import Job, Member, members_of

__all__ = ["SlurmOptions", "SlurmQueue", "states"]

_TIMEOUT_S = 60
# Passed on to sbatch as they are.
_RESOURCES = (
    *("partition", "account", "qos", "constraint"),
    *("nodes", "ntasks_per_node", "cpus_per_task", "gpus_per_node", "mem"),
)


@dataclass(kw_only=True)
class SlurmOptions:
    """`hydra.launcher` of `hydra/launcher=slurm`; null leaves a choice to the cluster."""

    partition: str | None = setting(None, "partition")
    account: str | None = setting(None, "account that pays")
    qos: str | None = setting(None, "quality of service")
    constraint: str | None = setting(None, "features that a node must have")
    timeout_min: int = setting(240, "minutes until SLURM takes the machine back", low=1)
    signal_delay_s: int = setting(120, "seconds before that at which the run saves and requeues itself", low=1)
    max_num_timeout: int = setting(20, "how often a run that ran out of time goes on in a new job", low=0)
    nodes: int = setting(1, "machines of a run", low=1)
    ntasks_per_node: int = setting(1, "processes of a run on each machine: one for each GPU, as a rule", low=1)
    cpus_per_task: int | None = setting(4, "CPUs of a process", low=1)
    gpus_per_node: int | None = setting(1, "GPUs of a run on each machine", low=1)
    mem: str | None = setting(None, "memory of a run on each machine, such as 16G")
    max_running: int = setting(256, "how many runs of an array SLURM may run at once", low=1)
    setup: list[str] = setting([], "shell commands before the run, such as module load")
    additional_parameters: dict[str, Any] = setting({}, "further options of sbatch, by name")
    poll_s: float = setting(10.0, "seconds between two looks at the queue", above=0)
    on_interrupt: str = setting("ask", "what Ctrl-C does with the jobs", choices=("ask", "leave", "cancel"))


class SlurmQueue:
    """Submits to SLURM, and cancels there."""

    name = "slurm"

    def __init__(self, options: SlurmOptions) -> None:
        if options.signal_delay_s >= 60 * options.timeout_min:
            raise ConfigError(
                f"hydra.launcher.signal_delay_s={options.signal_delay_s}: allowed is below "
                f"hydra.launcher.timeout_min={options.timeout_min}, which is {60 * options.timeout_min} s"
            )
        self.options = options

    def require(self) -> None:
        """Refuse where there is no SLURM.

        Raises:
            RunError: sbatch is not there.
        """
        if shutil.which("sbatch") is None:
            raise RunError("hydra/launcher=slurm: no sbatch here; start the sweep on a login node of the cluster")

    def describe(self) -> str:
        """What is asked for, in one line."""
        asked = {name: getattr(self.options, name) for name in (*_RESOURCES, "timeout_min", "max_num_timeout")}
        return "SLURM: " + ", ".join(f"{name}={value}" for name, value in asked.items() if value is not None)

    def submit(self, waves: Sequence[Sequence[Member]], *, after: Sequence[Job]) -> None:
        """Submit an array a wave; each begins when the jobs of the waves before, and those in `after`, have ended.

        Raises:
            RunError: SLURM refused.
        """
        before = [job.id for job in after]
        for members in waves:
            submitted = self._submit_array(members, after=before)
            before = [*before, *submitted]

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Cancel jobs: each run saves first."""
        subprocess.run(["scancel", *(job.id for job in jobs)], check=False, timeout=_TIMEOUT_S)

    def _submit_array(self, members: Sequence[Member], *, after: Sequence[str]) -> list[str]:
        import submitit  # a second, and only who submits needs it
        from submitit.core.utils import FailedJobError

        folder = members[0].folder.parent / "jobs"
        folder.mkdir(mode=0o700, exist_ok=True)
        short = labels(members_of(members[0].sweep_dir))
        submissions = [MemberJob(one.folder, job_name=short[one.name].replace(" ", "-")) for one in members]
        executor = submitit.SlurmExecutor(folder, max_num_timeout=self.options.max_num_timeout)
        executor.update_parameters(**self._parameters(members[0].sweep_dir.name, after=after))
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # submitit repeats what sbatch says
                jobs = executor.submit_array(submissions)
        except FailedJobError as error:
            lines = [line for line in str(error).splitlines() if "error" in line] or [str(error)]
            told = " ".join(lines[0].split()).removeprefix("sbatch: error: ")
            raise RunError(f"hydra/launcher=slurm: sbatch refused: {told}; set hydra.launcher.*") from None
        for member, job in zip(members, jobs, strict=True):
            member.set_job(Job(queue=self.name, id=job.job_id))
        return [job.job_id for job in jobs]

    def _parameters(self, sweep: str, *, after: Sequence[str]) -> dict[str, Any]:
        options = self.options
        parameters: dict[str, Any] = {
            "job_name": f"esper-{sweep}",  # of the array; a member that begins gives its job its own name
            "time": options.timeout_min,
            "signal_delay_s": options.signal_delay_s,
            "array_parallelism": options.max_running,
            "additional_parameters": {"requeue": True, **options.additional_parameters},
        }
        if options.nodes * options.ntasks_per_node > 1:
            parameters["srun_args"] = ["--kill-on-bad-exit=1"]  # who waits for a process that has died waits long
        if options.setup:
            parameters["setup"] = options.setup
        if after:
            arrays = dict.fromkeys(one.partition("_")[0] for one in after)
            parameters["dependency"] = "afterany:" + ":".join(arrays)
        asked = {name: getattr(options, name) for name in _RESOURCES}
        return parameters | {name: value for name, value in asked.items() if value is not None}


def states() -> dict[str, str] | None:
    """SLURM's word for the state of each of the user's jobs, by id; None if it does not answer.

    From squeue, which works without an accounting database too. Jobs that ended are there for some minutes.
    """
    command = ["squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}", "--format=%i|%T"]
    try:
        done = subprocess.run(command, check=True, timeout=_TIMEOUT_S, capture_output=True, text=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(line.split("|") for line in done.stdout.split())
