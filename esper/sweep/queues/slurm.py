"""Sweep members as SLURM jobs: submitted as arrays through submitit, monitored through squeue."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esper import stopping
from esper.configs import TolariaConfig
from esper.configs.schema import setting
from esper.errors import ConfigError, RunError, one_line
from esper.sweep.job import NOT_BEGUN, MemberJob
from esper.sweep.manifest import Job, Member, labels, members_of, require_private
from esper.sweep.pack import LOG, PackJob
from esper.sweep.queues.base import JobState, Queue, QueueOptions
from esper.sweep.queues.packed import MAX_MEMBERS, on_cpu, require_packable

__all__ = ["SlurmOptions", "SlurmQueue"]

_TIMEOUT_S = 60
# Passed to sbatch as they are.
_RESOURCES = (
    *("partition", "account", "qos", "constraint"),
    *("nodes", "ntasks_per_node", "cpus_per_task", "gpus_per_node", "mem"),
)
# SLURM's final job states; in any other a job waits, runs, or is about to.
_FINAL_STATES = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "REVOKED", "TIMEOUT"}
)


@dataclass(kw_only=True)
class SlurmOptions(QueueOptions):
    """`hydra.launcher` of `hydra/launcher=slurm`; null uses the cluster's default."""

    partition: str | None = setting(None, "partition")
    account: str | None = setting(None, "account to charge")
    qos: str | None = setting(None, "quality of service")
    constraint: str | None = setting(None, "required node features")
    timeout_min: int = setting(240, "time limit of a job, in minutes", low=1)
    signal_delay_s: int = setting(
        120, "seconds before the time limit at which the run saves a checkpoint and requeues itself", low=1
    )
    max_num_timeout: int = setting(20, "how often a run that reached the time limit is requeued", low=0)
    nodes: int = setting(1, "nodes of a run", low=1)
    ntasks_per_node: int = setting(1, "processes of a run on each node, usually one for each GPU", low=1)
    cpus_per_task: int | None = setting(4, "CPUs of each process", low=1)
    gpus_per_node: int | None = setting(1, "GPUs of a run on each node", low=1)
    mem: str | None = setting(None, "memory of a run on each node, such as 16G")
    members: int = setting(1, "runs that train at once in a job, sharing its GPU", low=1, high=MAX_MEMBERS)
    max_running: int = setting(256, "how many jobs of an array may run at once", low=1)
    setup: list[str] = setting([], "shell commands before the run, such as module load")
    additional_parameters: dict[str, Any] = setting({}, "further options of sbatch, by name")
    poll_s: float = setting(10.0, "seconds between two polls of the jobs", above=0)


class SlurmQueue(Queue):
    """Jobs of a SLURM cluster."""

    name = "slurm"
    options_type = SlurmOptions
    runs_here = False
    options: SlurmOptions

    def __init__(self, options: SlurmOptions) -> None:
        if options.signal_delay_s >= 60 * options.timeout_min:
            raise ConfigError(
                f"hydra.launcher.signal_delay_s={options.signal_delay_s}: allowed is below "
                f"hydra.launcher.timeout_min={options.timeout_min}, which is {60 * options.timeout_min} s"
            )
        if options.members > 1 and options.nodes * options.ntasks_per_node > 1:
            raise ConfigError(
                f"hydra.launcher.members={options.members}: runs that share a GPU are one process; set "
                "hydra.launcher.nodes=1 hydra.launcher.ntasks_per_node=1"
            )
        self.options = options
        self.requests_gpus = options.gpus_per_node is not None

    def require(self, configs: Sequence[TolariaConfig] = ()) -> None:
        """Raise a `RunError` where there is no sbatch, and a `ConfigError` if members cannot share a GPU."""
        if self.options.members > 1:
            where = f"hydra.launcher.members={self.options.members}"
            if not self.requests_gpus and not self.options.additional_parameters and not on_cpu():
                raise ConfigError(
                    f"{where}: needs a GPU, as hydra.launcher.gpus_per_node=1 requests; on CPUs leave it at 1"
                )
            require_packable(configs, where)
        if shutil.which("sbatch") is None:
            raise RunError(
                "hydra/launcher=slurm: sbatch is not installed here; start the sweep on a login node of the cluster"
            )

    def describe(self) -> str:
        """The requested resources, in one line."""
        names = (*_RESOURCES, "timeout_min", "max_num_timeout", *(["members"] if self.options.members > 1 else []))
        requested = {name: getattr(self.options, name) for name in names}
        return "SLURM: " + ", ".join(f"{name}={value}" for name, value in requested.items() if value is not None)

    def submit(self, levels: Sequence[Sequence[Member]], *, after: Sequence[Job]) -> None:
        """Submit an array for each level; it depends on the arrays of the levels before and on `after`.

        Raises:
            RunError: sbatch refused.
        """
        dependencies = [job.id for job in after]
        for members in levels:
            with stopping.deferred():  # what sbatch has accepted is recorded, or nothing could cancel it
                dependencies += self._submit_array(members, after=dependencies)

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Cancel jobs; a run that has begun saves a checkpoint first."""
        subprocess.run(["scancel", *(job.id for job in jobs)], check=False, timeout=_TIMEOUT_S)

    @staticmethod
    def job_states(jobs: Sequence[tuple[Member, Job]]) -> list[JobState]:
        """State of each member's job."""
        slurm_states = _squeue()
        if slurm_states is None:
            return [JobState(state="unknown", reason="squeue did not respond")] * len(jobs)
        return [_job_state(slurm_states.get(job.id), has_begun=member.began) for member, job in jobs]

    @staticmethod
    def log_file(member: Member, job: Job) -> Path:
        """The file that holds the member's output: in a job of several its own, else the job's as submitit names it."""
        own = member.folder / LOG
        if own.exists() and own.stat().st_mtime > (member.folder / "job.json").stat().st_mtime:
            return own
        return member.folder.parent / "jobs" / f"{job.id}_0_log.err"

    def _submit_array(self, members: Sequence[Member], *, after: Sequence[str]) -> list[str]:
        import submitit  # takes a second to import
        from submitit.core.utils import FailedJobError

        folder = members[0].folder.parent / "jobs"
        folder.mkdir(mode=0o700, exist_ok=True)
        require_private(folder)
        others = set(folder.iterdir())
        names = labels(members_of(members[0].sweep_dir))
        size = self.options.members
        packs = [members[i : i + size] for i in range(0, len(members), size)]
        submissions: list[Callable[[], None]] = []
        for pack in packs:
            if size > 1:
                submissions.append(PackJob([member.folder for member in pack], at_once=size))
            else:
                submissions.append(MemberJob(pack[0].folder, job_name=names[pack[0].name].replace(" ", "-")))
        executor = submitit.SlurmExecutor(folder, max_num_timeout=self.options.max_num_timeout)
        executor.update_parameters(**self._parameters(members[0].sweep_dir.name, after=after, pickles=folder))
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # submitit repeats sbatch's output
                jobs = executor.submit_array(submissions)
        except FailedJobError as error:
            for path in set(folder.iterdir()) - others:
                path.unlink()
            with contextlib.suppress(OSError):  # earlier jobs use it
                folder.rmdir()
            errors = [line for line in str(error).splitlines() if "error" in line] or [str(error)]
            reason = one_line(errors[0]).removeprefix("sbatch: error: ")
            raise RunError(f"hydra/launcher=slurm: sbatch refused: {reason}; set hydra.launcher.*") from None
        for pack, job in zip(packs, jobs, strict=True):
            for member in pack:
                member.set_job(Job(queue=self.name, id=job.job_id))
        return [job.job_id for job in jobs]

    def _parameters(self, sweep: str, *, after: Sequence[str], pickles: Path) -> dict[str, Any]:
        options = self.options
        parameters: dict[str, Any] = {
            "job_name": f"esper-{sweep}",  # of the array; each job renames itself when it begins
            "time": options.timeout_min,
            "signal_delay_s": options.signal_delay_s,
            "array_parallelism": options.max_running,
            "additional_parameters": {"requeue": True, **options.additional_parameters},
        }
        if options.nodes * options.ntasks_per_node > 1:
            parameters["srun_args"] = ["--kill-on-bad-exit=1"]  # the other ranks would wait for the dead one
        parameters["setup"] = [private_check(pickles), *options.setup]
        if after:
            arrays = dict.fromkeys(job_id.partition("_")[0] for job_id in after)
            parameters["dependency"] = "afterany:" + ":".join(arrays)
        resources = {name: getattr(options, name) for name in _RESOURCES}
        return parameters | {name: value for name, value in resources.items() if value is not None}


def private_check(folder: Path) -> str:
    """A shell command that ends a job before it unpickles what somebody else may have written."""
    name = shlex.quote(str(folder))
    is_private = f'[ ! -L {name} ] && [ -O {name} ] && [ -z "$(find {name} -maxdepth 0 -perm /022)" ]'
    return f"{{ {is_private}; }} || {{ echo error: {name} is a link, or not yours alone >&2; exit 2; }}"


def _squeue() -> dict[str, str] | None:
    """SLURM's state of each of the user's jobs, by id; None if squeue did not respond.

    squeue also works without an accounting database. It lists jobs for some minutes after they ended.
    """
    command = ["squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}", "--format=%i|%T"]
    try:
        done = subprocess.run(command, check=True, timeout=_TIMEOUT_S, capture_output=True, text=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(line.split("|") for line in done.stdout.split())


def _job_state(slurm_state: str | None, *, has_begun: bool) -> JobState:
    if slurm_state == "CANCELLED" and not has_begun:
        return JobState(state="interrupted", reason=NOT_BEGUN)
    if slurm_state is None or slurm_state in _FINAL_STATES:
        return JobState(state="ended", reason=slurm_state or "gone from the queue")
    if slurm_state in ("RUNNING", "COMPLETING"):
        return JobState(state="running")
    if has_begun:
        return JobState(state="waiting", reason=f"requeued, {slurm_state.lower()}")
    return JobState(state="waiting", reason="" if slurm_state == "PENDING" else slurm_state.lower())
