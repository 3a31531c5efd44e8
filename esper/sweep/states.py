"""How the members of a sweep stand: what the queue says of their jobs, and what these left behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from esper.sweep.manifest import Job, Member
from esper.sweep.queues import slurm
from esper.sweep.queues.local import is_alive

__all__ = ["OVER", "Standing", "log_of", "standings"]

# The states in which a member's job is no longer there.
OVER = frozenset({"finished", "failed", "interrupted", "lost"})

# SLURM's words for jobs that have ended for good; with any other a job waits, runs, or is on its way.
_ENDED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "REVOKED", "TIMEOUT"}
)
_MAX_TAIL_BYTES = 16384


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a member stands.

    Attributes:
        state: waiting, running, finished, failed, interrupted (it was stopped, and saved), lost (it left no word),
            or unknown (the queue does not answer).
        reason: why it waits, failed or was interrupted.
        metric: validation accuracy of a finished run, in [0, 1].
    """

    state: str
    reason: str = ""
    metric: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether the member's job is no longer there."""
        return self.state in OVER


def standings(members: Sequence[Member]) -> dict[str, Standing]:
    """How the members stand, by name."""
    jobs = {member.name: member.job() for member in members}
    words = slurm.states() if any(job is not None and job.queue == "slurm" for job in jobs.values()) else {}
    return {member.name: _standing(member, jobs[member.name], words) for member in members}


def _standing(member: Member, job: Job | None, words: dict[str, str] | None) -> Standing:
    if job is None:
        return _afterwards(member, "was never submitted")
    if job.queue == "slurm":
        return _of_slurm(member, words, job.id)
    if is_alive(job.id) and not member.outcome():
        return Standing(state="running" if member.began else "waiting")
    return _afterwards(member, "its process has gone")


def _of_slurm(member: Member, words: dict[str, str] | None, job_id: str) -> Standing:
    if words is None:
        return Standing(state="unknown", reason="squeue does not answer")
    word = words.get(job_id)
    if word == "CANCELLED" and not member.began:
        return Standing(state="interrupted", reason="cancelled before it began")
    if word is None or word in _ENDED:
        return _afterwards(member, word or "gone from the queue")
    if word in ("RUNNING", "COMPLETING"):
        return Standing(state="running")
    again = "requeued, " if member.began else ""
    return Standing(state="waiting", reason=f"{again}{word.lower()}" if word != "PENDING" or again else "")


def _afterwards(member: Member, word: str) -> Standing:
    """How a member ended whose job is no longer there."""
    outcome = member.outcome()
    if outcome:
        return Standing(state=outcome["status"], reason=outcome["reason"], metric=outcome["metric"])
    if result := member.result():
        return Standing(state="finished", metric=result["val_accuracy"])
    told = _last_line(log_of(member)) if member.began else ""
    return Standing(state="lost", reason=f"{word}: {told}" if told else word)


def log_of(member: Member) -> Path:
    """Where the member's job writes what it has to say."""
    job = member.job()
    if job is not None and job.queue == "slurm":
        return member.folder.parent / "jobs" / f"{job.id}_0_log.err"
    return member.folder / "job.log"


def _last_line(path: Path) -> str:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _MAX_TAIL_BYTES))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
