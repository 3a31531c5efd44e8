"""What every queue does: submit the members of a sweep as jobs, report their states, cancel them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from esper.configs import TolariaConfig
from esper.configs.schema import setting
from esper.sweep.manifest import Job, Member

__all__ = ["JobState", "Queue", "QueueOptions"]


@dataclass(kw_only=True)
class QueueOptions:
    """The part of `hydra.launcher` that all queues share."""

    poll_s: float = setting(1.0, "seconds between two polls of the jobs", above=0)
    on_interrupt: str = setting("ask", "what Ctrl-C does with the jobs", choices=("ask", "leave", "cancel"))


@dataclass(frozen=True, slots=True, kw_only=True)
class JobState:
    """State of a member's job.

    Attributes:
        state: waiting, running, ended, interrupted (cancelled before it began), or unknown (the queue did not respond).
        reason: why, where the state alone does not explain it.
    """

    state: Literal["waiting", "running", "ended", "interrupted", "unknown"]
    reason: str = ""


class Queue(Protocol):
    """Where the members of a sweep run as jobs; `hydra/launcher=NAME` selects it.

    Attributes:
        name: of the launcher.
        options_type: schema of the launcher's options.
        runs_here: jobs run on this machine, with its devices.
        options: the launcher's options.
        requests_gpus: jobs get GPUs of another machine.
    """

    name: ClassVar[str]
    options_type: ClassVar[type[QueueOptions]]
    runs_here: ClassVar[bool]
    options: QueueOptions
    requests_gpus: bool

    def __init__(self, options: Any) -> None: ...

    def require(self, configs: Sequence[TolariaConfig] = ()) -> None:
        """Raise an error if jobs, or those with these configurations, cannot be submitted from this machine."""

    def describe(self) -> str:
        """Where and how jobs run, in one line."""

    def submit(self, levels: Sequence[Sequence[Member]], *, after: Sequence[Job]) -> None:
        """Submit members and record their jobs.

        Args:
            levels: members by dependency level; those of a level start when all jobs of the levels before have ended.
            after: jobs that have to end before the first level starts.

        Raises:
            RunError: the queue refused.
        """

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Cancel jobs; a run that has begun saves a checkpoint first."""

    @staticmethod
    def job_states(jobs: Sequence[tuple[Member, Job]]) -> list[JobState]:
        """State of each member's job."""

    @staticmethod
    def log_file(member: Member, job: Job) -> Path:
        """The file that holds the output of the member's job."""
