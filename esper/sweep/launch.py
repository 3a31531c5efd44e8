"""Launch the members of a sweep as jobs: submit those that have not finished, then monitor all until they end."""

from __future__ import annotations

import dataclasses
import functools
import shlex
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from esper.configs import TolariaConfig
from esper.configs.comparison import dependency_level
from esper.errors import RunError
from esper.folders import accept, restorer
from esper.redact import printable
from esper.sweep.launchers import queue_of
from esper.sweep.manifest import Job, Member, freeze, labels, launcher_file, launcher_of, members_of, write_launcher
from esper.sweep.member_state import MemberState, member_states
from esper.sweep.queues.base import Queue

__all__ = ["SubmissionPlan", "launch", "plan_submission", "resume"]

# How long cancelled jobs may take to save a checkpoint.
_CANCEL_TIMEOUT_S = 90


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionPlan:
    """What launching a sweep does with its members; those that have finished are in neither collection.

    Attributes:
        num_members: of the whole sweep.
        active: states of the members that have a job already, by name.
        to_submit: the other members that have not finished.
    """

    num_members: int
    active: Mapping[str, MemberState]
    to_submit: Sequence[tuple[Member, TolariaConfig]]

    def describe(self, verb: str) -> str:
        """The counts in one line; `verb` goes with the members to submit."""
        parts = [f"{len(self.to_submit)} {verb}"]
        if self.active:
            parts.append(f"{len(self.active)} already submitted")
        if num_finished := self.num_members - len(self.active) - len(self.to_submit):
            parts.append(f"{num_finished} already finished")
        return f"{self.num_members} runs: {', '.join(parts)}"


def plan_submission(members: Sequence[tuple[Member, TolariaConfig]]) -> SubmissionPlan:
    """Which members have to be submitted.

    Raises:
        RunError: the data has changed since a member finished.
    """
    unique = {member.name: (member, config) for member, config in members}
    states = member_states([member for member, _ in unique.values()])
    active = {name: state for name, state in states.items() if not state.is_over}
    inactive = [(member, config) for name, (member, config) in unique.items() if name not in active]
    to_submit = [(member, config) for member, config in inactive if not _is_finished(member, config)]
    _require_same_data([(member, config) for member, config in inactive if _is_finished(member, config)])
    return SubmissionPlan(num_members=len(unique), active=active, to_submit=to_submit)


def launch(members: Sequence[tuple[Member, TolariaConfig]], queue: Queue) -> dict[str, MemberState]:
    """Submit the members that have neither finished nor a job, and wait until all have ended.

    Returns their final states, by name.

    Raises:
        RunError: the queue refused, or did not respond.
        SystemExit: Ctrl-C; 130.
    """
    queue.require([config for _, config in members])
    everyone = list({member.name: member for member, _ in members}.values())
    plan = plan_submission(members)
    if unknown := next((state for state in plan.active.values() if state.state == "unknown"), None):
        raise RunError(f"{unknown.reason}; cannot tell which jobs are running; try again later")
    active = [member for member in everyone if member.name in plan.active]
    sweep_dir = everyone[0].sweep_dir
    try:
        if plan.to_submit:
            _submit(plan.to_submit, queue, active=active)
        accept()
        _print(f"{plan.describe('submitted')}; {queue.describe()}")
        if ids := _ids([*(member for member, _ in plan.to_submit), *active]):
            _print(f"jobs {ids}; to see their states: esper sweep status {_relative(sweep_dir)}")
        return _monitor(everyone, queue)
    except KeyboardInterrupt:
        _interrupt(everyone, queue)


def _submit(to_submit: Sequence[tuple[Member, TolariaConfig]], queue: Queue, *, active: Sequence[Member]) -> None:
    """Submit members; if none could be, leave their sweep as it was."""
    sweep_dir = to_submit[0][0].sweep_dir
    restore = restorer([launcher_file(sweep_dir), *(file for member, _ in to_submit for file in member.files)])
    try:
        for member, config in to_submit:
            freeze(member, config)
        write_launcher(sweep_dir, queue=queue.name, options=dataclasses.asdict(queue.options))
        levels, after = _by_dependency_level(to_submit, active)
        queue.submit(levels, after=after)
    except BaseException:
        if any((member.folder / "job.json").exists() for member, _ in to_submit):
            accept()
        else:
            restore()
        raise


def resume(sweep_dir: Path) -> int:
    """Launch the unfinished members of a sweep again, with the options of the last launch; returns the exit code.

    Raises:
        RunError: no sweep was launched there, or the queue refused.
    """
    from esper.sweep.summary import summarize  # imports MLflow, which is only needed after a sweep

    members = [(member, member.config()) for member in members_of(sweep_dir)]
    queue = queue_of(*launcher_of(sweep_dir))
    states = launch(members, queue)
    summarize(sweep_dir, {member.name: config.tracking for member, config in members})
    short = labels([member for member, _ in members])
    failed = {name: state for name, state in states.items() if state.state != "finished"}
    for name, state in failed.items():
        sys.stderr.write(f"error: {short[name]}: {state.reason or state.state}\n")
    return 1 if failed else 0


def _by_dependency_level(
    to_submit: Sequence[tuple[Member, TolariaConfig]], active: Sequence[Member]
) -> tuple[list[list[Member]], list[Job]]:
    """The members by dependency level, and the jobs that the lowest level depends on."""
    levels: dict[int, list[Member]] = {}
    for member, config in to_submit:
        levels.setdefault(dependency_level(config.comparison.arm), []).append(member)
    jobs = [job for member in active if (job := member.job()) is not None]
    # Any active job may be a dependency, except of members that depend on nothing.
    return [levels[number] for number in sorted(levels)], jobs if min(levels) > 0 else []


def _is_finished(member: Member, config: TolariaConfig) -> bool:
    """Whether there is nothing to run; with `resume_from`, the run decides."""
    return member.result() is not None and not config.fresh and config.checkpoint.resume_from is None


def _require_same_data(finished: Sequence[tuple[Member, TolariaConfig]]) -> None:
    """Refuse to count members as finished whose data, policy or recipe has changed since."""
    if not finished:
        return
    from esper.data import Fingerprint, fingerprint  # imports torch, which launching does not need otherwise
    from esper.launch.initial import resolve_policy
    from esper.tolaria.data_record import require_same_data

    found: dict[str, Fingerprint] = {}  # members share data sets

    def find(member: Member, config: TolariaConfig) -> Fingerprint:
        folder = Path(member.cwd, Path(config.dataset.data_dir).expanduser())
        dataset = dataclasses.replace(config.dataset, data_dir=str(folder))
        key = repr(dataset)
        if key not in found:
            found[key] = fingerprint(dataset)
        return found[key]

    for member, config in finished:
        resolve_policy(config, run_dir=member.run_dir)
        require_same_data(config, member.run_dir, functools.partial(find, member, config), is_shown=True)


def _monitor(members: Sequence[Member], queue: Queue) -> dict[str, MemberState]:
    """Print every change of state until all members have ended; returns the final states."""
    short = labels(members)
    printed: dict[str, str] = {}
    num_lost: dict[str, int] = {}
    while True:
        states = member_states(members)
        for name, state in states.items():
            # A job that the queue is requeueing can be missing once: only twice in a row is lost.
            num_lost[name] = num_lost.get(name, 0) + 1 if state.is_lost else 0
            if num_lost[name] == 1 or printed.get(name) == state.state:
                continue
            printed[name] = state.state
            if state.state != "waiting" or state.reason:
                _print(f"  {state.state:<11} {short[name]}{_details(state)}")
        if all(state.is_over and num_lost[name] != 1 for name, state in states.items()):
            return states
        time.sleep(queue.options.poll_s)


def _details(state: MemberState) -> str:
    figure = f"   validation {state.headline.label} {state.figure}" if state.figure else ""
    return f"{figure}   {state.reason}" if state.reason else figure


def _interrupt(members: Sequence[Member], queue: Queue) -> NoReturn:
    """Handle Ctrl-C: leave the jobs in the queue or cancel them, then exit."""
    states = member_states(members)
    active = [member for member in members if not states[member.name].is_over]
    choice = queue.options.on_interrupt
    if choice == "ask":
        choice = _ask(active) if sys.stdin.isatty() else "leave"
    if choice == "cancel":
        queue.cancel([job for member in active if (job := member.job()) is not None])
        _print(f"cancelled jobs {_ids(active)}; waiting for the runs to save their checkpoints")
        left = _await_end(active, poll_s=min(1.0, queue.options.poll_s))
        if left:
            _print(f"jobs {_ids(left)} have not ended within {_CANCEL_TIMEOUT_S} s, or nothing tells how they ended")
        _print("the same command again resumes them")
    else:
        status = f"esper sweep status {_relative(members[0].sweep_dir)}"
        _print(f"jobs {_ids(active)} remain in the queue; to see their states: {status}")
    raise SystemExit(130)


def _await_end(members: Sequence[Member], *, poll_s: float) -> list[Member]:
    """Wait until cancelled jobs have recorded how they ended; returns those that have not."""
    deadline = time.monotonic() + _CANCEL_TIMEOUT_S
    num_lost = 0
    while True:
        states = member_states(members)
        left = [member for member in members if not states[member.name].is_over or states[member.name].is_lost]
        # A job's files can appear after the queue says that it ended: as in `_monitor`, only twice in a row is lost.
        num_lost = num_lost + 1 if all(states[member.name].is_lost for member in left) else 0
        if not left or num_lost > 1 or time.monotonic() > deadline:
            return left
        time.sleep(poll_s)


def _ask(active: Sequence[Member]) -> str:
    sys.stdout.write(f"\n{len(active)} runs are waiting or running as jobs {_ids(active)}. Cancel them? [y/N] ")
    sys.stdout.flush()
    try:
        return "cancel" if sys.stdin.readline().strip().lower() in ("y", "yes") else "leave"
    except KeyboardInterrupt:
        return "leave"


def _ids(members: Sequence[Member]) -> str:
    """The ids of the members' jobs, grouped by job array: `12_[0-3,5], 17`."""
    arrays: dict[str, set[int]] = {}
    for member in members:
        if job := member.job():
            array, _, index = job.short_id.partition("_")
            arrays.setdefault(array, set()).update([int(index)] if index else [])
    return ", ".join(f"{array}_[{_ranges(indices)}]" if indices else array for array, indices in arrays.items())


def _ranges(numbers: Collection[int]) -> str:
    """`0-3,5` for 0, 1, 2, 3 and 5."""
    firsts = sorted(number for number in numbers if number - 1 not in numbers)
    lasts = sorted(number for number in numbers if number + 1 not in numbers)
    return ",".join(
        f"{first}-{last}" if last > first else str(first) for first, last in zip(firsts, lasts, strict=True)
    )


def _relative(path: Path) -> str:
    """The path as seen from the working directory, if it is inside, quoted for a shell."""
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))


def _print(line: str) -> None:
    sys.stdout.write(f"{printable(line)}\n")
    sys.stdout.flush()
