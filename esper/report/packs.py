"""Runs that trained in one process at the same time: their throughput together, and the memory of all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from esper.report.run_record import RunRecord
from esper.tracking.environment import SHARED_PROCESS
from esper.tracking.formatting import memory, number

__all__ = ["SharedWork", "is_shared", "sentences", "shared_work"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedWork:
    """What a run did in a process that others shared.

    Attributes:
        process: which: its host, number, and a token of no other process.
        noun: what an example is, in the plural.
        num_examples: trained from the first logged step on.
        began_unix_s, ended_unix_s: time of the first and the last logged step.
        memory_bytes: the most that all runs of the process have used.
    """

    process: str
    noun: str
    num_examples: int
    began_unix_s: float
    ended_unix_s: float
    memory_bytes: int


def is_shared(record: RunRecord) -> bool:
    """Whether the last process of the run trained others, too."""
    return record.history.started is not None and SHARED_PROCESS in record.history.started["environment"]


def shared_work(record: RunRecord) -> SharedWork | None:
    """The run's work in its last process; None if that was its own, or two steps were not logged."""
    started = record.history.started
    if started is None or not is_shared(record):
        return None
    steps = [event for event in record.of_kind("step") if event["time_unix_s"] >= started["time_unix_s"]]
    if len(steps) < 2:
        return None
    return SharedWork(
        process=started["environment"][SHARED_PROCESS],
        noun=started.get("noun", "images"),
        num_examples=(steps[-1]["step"] - steps[0]["step"]) * started["config"]["dataset"]["batch_size"],
        began_unix_s=steps[0]["time_unix_s"],
        ended_unix_s=steps[-1]["time_unix_s"],
        memory_bytes=max(event["memory_bytes"] for event in steps),
    )


def sentences(works: Iterable[SharedWork | None]) -> list[str]:
    """One for each process that several runs shared."""
    by_process: dict[str, list[SharedWork]] = {}
    for work in works:
        if work is not None:
            by_process.setdefault(work.process, []).append(work)
    return [_sentence(process, shared) for process, shared in by_process.items() if len(shared) > 1]


def _sentence(process: str, works: list[SharedWork]) -> str:
    seconds = max(work.ended_unix_s for work in works) - min(work.began_unix_s for work in works)
    rate = sum(work.num_examples for work in works) / max(seconds, 1e-9)
    where = ", ".join(process.split(", ")[:2])
    return (
        f"{len(works)} runs shared one process ({where}): together {number(rate)} {works[0].noun}/s from the first "
        f"logged step to the last, validation and checkpoints included, and at most "
        f"{memory(max(work.memory_bytes for work in works))} of memory."
    )
