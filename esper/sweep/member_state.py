"""States of a sweep's members: from the queues while their jobs exist, then from the files that the jobs left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from esper.contracts.metrics import ACCURACY, MetricInfo, headline_of
from esper.sweep.launchers import queue_type
from esper.sweep.manifest import Job, Member
from esper.sweep.queues.base import JobState
from esper.tracking.formatting import metric
from esper.tracking.liveness import read_status

__all__ = ["NOT_STARTED", "MemberState", "log_file", "member_states"]

NOT_STARTED = "not started"
_MAX_TAIL_BYTES = 16384


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberState:
    """State of a member.

    Attributes:
        state: not started (of a sweep without jobs), waiting, running, finished, failed, interrupted (it saved a
            checkpoint, or had not begun), lost (its job ended without recording an outcome), killed (lost while its
            run was training), or unknown (the queue did not respond).
        reason: why it waits, failed or was interrupted; when a killed run was last seen.
        metric: the leading metric of a finished run on the validation split.
        headline: what that metric is.
    """

    state: str
    reason: str = ""
    metric: float | None = None
    headline: MetricInfo = ACCURACY

    @property
    def is_over(self) -> bool:
        """Whether nothing of the member runs or waits any more."""
        return self.is_lost or self.state in ("finished", "failed", "interrupted")

    @property
    def figure(self) -> str:
        """The metric as text; empty if it is unknown."""
        return "" if self.metric is None else metric(self.metric, self.headline, decimals=2)

    @property
    def is_lost(self) -> bool:
        """Whether its job ended without recording an outcome."""
        return self.state in ("lost", "killed")


def member_states(members: Sequence[Member]) -> dict[str, MemberState]:
    """The members' states, by name."""
    jobs: dict[str, list[tuple[Member, Job]]] = {}
    for member in members:
        if (job := member.job()) is not None:
            jobs.setdefault(job.queue, []).append((member, job))
    states = dict.fromkeys((member.name for member in members), JobState(state="ended", reason="was never submitted"))
    for queue, submitted in jobs.items():
        names = [member.name for member, _ in submitted]
        states.update(zip(names, queue_type(queue).job_states(submitted), strict=True))
    return {member.name: _member_state(member, states[member.name]) for member in members}


def _member_state(member: Member, job: JobState) -> MemberState:
    if not member.has_job:
        return _state_without_job(member)
    if job.state != "ended":
        return MemberState(state=job.state, reason=job.reason)
    if (outcome := member.outcome()) and outcome["status"] != "lost":
        headline = headline_of(member.result())
        return MemberState(
            state=outcome["status"], reason=outcome["reason"], metric=outcome["metric"], headline=headline
        )
    if result := member.result():
        headline = headline_of(result)
        return MemberState(state="finished", metric=result[f"val_{headline.name}"], headline=headline)
    status, seen = read_status(member.run_dir)
    if status == "interrupted" and not outcome and job.reason == "CANCELLED":  # requeued, and cancelled while it waited
        return MemberState(state="interrupted", reason=seen)
    path = log_file(member) if member.began and not outcome else None
    last_line = _last_line(path) if path else ""
    reason = outcome.get("reason", f"{job.reason}: {last_line}" if last_line else job.reason)
    if status == "killed":
        return MemberState(state="killed", reason=f"{seen}; {reason}")
    return MemberState(state="lost", reason=reason)


def _state_without_job(member: Member) -> MemberState:
    status, reason = read_status(member.run_dir)
    result = member.result()
    headline = headline_of(result)
    figure = result[f"val_{headline.name}"] if result else None
    return MemberState(state=status or NOT_STARTED, reason=reason, metric=figure, headline=headline)


def log_file(member: Member) -> Path | None:
    """The file that holds the output of the member's job; None if it was never submitted."""
    job = member.job()
    return queue_type(job.queue).log_file(member, job) if job else None


def _last_line(path: Path) -> str:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _MAX_TAIL_BYTES))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
