"""Launching the members of a sweep as jobs: keep what has finished, submit the rest, follow it to the end."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Collection, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import OmegaConf

from esper.configs import TolariaConfig
from esper.configs.check import check_group
from esper.configs.comparison import wave
from esper.configs.explain import nearest
from esper.errors import ConfigError, RunError
from esper.sweep.labels import labels
from esper.sweep.manifest import Job, Member, freeze, launcher_of, members_of, write_launcher
from esper.sweep.queues.local import LocalOptions, LocalQueue
from esper.sweep.queues.slurm import SlurmOptions, SlurmQueue
from esper.sweep.states import Standing, standings

__all__ = ["Queue", "launch", "plan", "queue_of", "resume", "told_plan"]

Queue = SlurmQueue | LocalQueue

# For how long jobs that are cancelled may save.
_CANCEL_S = 90


def queue_of(name: str, options: Mapping[str, Any]) -> Queue:
    """The queue `slurm` or `local`, with its options checked.

    Raises:
        ConfigError: an option that there is not, or a value that cannot be used.
    """
    schema: type[SlurmOptions | LocalOptions] = SlurmOptions if name == "slurm" else LocalOptions
    given = OmegaConf.to_container(OmegaConf.create(dict(options)), resolve=True)
    assert isinstance(given, dict)
    known = [field.name for field in dataclasses.fields(schema)]
    if unknown := [str(key) for key in given if key not in known]:
        raise ConfigError(f"hydra.launcher.{unknown[0]}: no such setting{nearest(unknown[0], known)}")
    checked = schema(**{str(key): value for key, value in given.items()})
    check_group(checked, prefix="hydra.launcher.")
    return SlurmQueue(checked) if isinstance(checked, SlurmOptions) else LocalQueue(checked)


def plan(
    members: Sequence[tuple[Member, TolariaConfig]],
) -> tuple[dict[str, Standing], list[tuple[Member, TolariaConfig]]]:
    """What launching would do: the members that are on their way already, by name, and those to submit.

    Those that have finished are in neither.
    """
    asked = {member.name: (member, config) for member, config in members}
    now = standings([member for member, _ in asked.values()])
    kept = {name: standing for name, standing in now.items() if not standing.is_over}
    return kept, [one for name, one in asked.items() if name not in kept and not _is_finished(*one)]


def told_plan(num_members: int, *, kept: Sized, todo: Sized, verb: str) -> str:
    """A plan in a line; `verb` says what happens to those to submit."""
    parts = [f"{len(todo)} {verb}"]
    if kept:
        parts.append(f"{len(kept)} on their way already")
    if num_finished := num_members - len(kept) - len(todo):
        parts.append(f"{num_finished} finished before")
    return f"{num_members} runs: {', '.join(parts)}"


def launch(members: Sequence[tuple[Member, TolariaConfig]], queue: Queue) -> dict[str, Standing]:
    """Submit the members that are neither finished nor on their way, and follow all of them to the end.

    Returns how each ended, by name.

    Raises:
        RunError: the queue refused.
        SystemExit: Ctrl-C; 130.
    """
    queue.require()
    everyone = list({member.name: member for member, _ in members}.values())
    kept, todo = plan(members)
    _refuse_unknown(kept)
    for member, config in todo:
        freeze(member, config)
    try:
        if todo:
            write_launcher(everyone[0].sweep_dir, queue=queue.name, options=dataclasses.asdict(queue.options))
            waves, after = _in_waves(todo, [member for member in everyone if member.name in kept])
            queue.submit(waves, after=after)
        _say(f"{told_plan(len(everyone), kept=kept, todo=todo, verb='submitted')}; {queue.describe()}")
        if ids := _ids([*(member for member, _ in todo), *(one for one in everyone if one.name in kept)]):
            _say(f"jobs {ids}; how they stand: esper sweep status {_shown(everyone[0].sweep_dir)}")
        return _follow(everyone, queue)
    except KeyboardInterrupt:
        _interrupted(everyone, queue)


def resume(sweep_dir: Path) -> int:
    """Submit again what is missing or failed in a sweep, as it was launched last; returns the exit code.

    Raises:
        RunError: no sweep was launched there, or the queue refused.
    """
    from esper.sweep.summary import gather  # what it takes is only needed after a sweep

    members = [(member, member.config()) for member in members_of(sweep_dir)]
    queue = queue_of(*launcher_of(sweep_dir))
    ended = launch(members, queue)
    gather(sweep_dir, {member.name: config.tracking for member, config in members})
    short = labels([member for member, _ in members])
    failed = [f"{short[name]}: {one.reason or one.state}" for name, one in ended.items() if one.state != "finished"]
    for line in failed:
        sys.stderr.write(f"error: {line}\n")
    return 1 if failed else 0


def _in_waves(
    todo: Sequence[tuple[Member, TolariaConfig]], kept: Sequence[Member]
) -> tuple[list[list[Member]], list[Job]]:
    """The members by the wave that they can begin in, and the jobs that the first of them waits for."""
    waves: dict[int, list[Member]] = {}
    for member, config in todo:
        waves.setdefault(wave(config.comparison.arm), []).append(member)
    on_their_way = [job for member in kept if (job := member.job()) is not None]
    # They may have to go before, but not before what can begin at once.
    return [waves[number] for number in sorted(waves)], on_their_way if min(waves) > 0 else []


def _is_finished(member: Member, config: TolariaConfig) -> bool:
    """Whether there is nothing to do; a run that is to begin elsewhere decides that for itself."""
    return member.result() is not None and not config.fresh and config.checkpoint.resume_from is None


def _refuse_unknown(kept: Mapping[str, Standing]) -> None:
    if any(standing.state == "unknown" for standing in kept.values()):
        raise RunError("squeue does not answer, so what runs already cannot be told; try again when it does")


def _follow(members: Sequence[Member], queue: Queue) -> dict[str, Standing]:
    """Tell every change of state until every member's job has gone."""
    short = labels(members)
    told: dict[str, str] = {}
    missed: dict[str, int] = {}
    while True:
        now = standings(members)
        for name, standing in now.items():
            # A job on its way from one place in the queue to another must not count as gone.
            missed[name] = missed.get(name, 0) + 1 if standing.state == "lost" else 0
            if missed[name] == 1 or told.get(name) == standing.state:
                continue
            told[name] = standing.state
            if standing.state != "waiting" or standing.reason:
                _say(f"  {standing.state:<11} {short[name]}{_details(standing)}")
        if all(standing.is_over and missed[name] != 1 for name, standing in now.items()):
            return now
        time.sleep(queue.options.poll_s)


def _details(standing: Standing) -> str:
    accuracy = f"   validation accuracy {standing.metric:.2%}" if standing.metric is not None else ""
    return f"{accuracy}   {standing.reason}" if standing.reason else accuracy


def _interrupted(members: Sequence[Member], queue: Queue) -> NoReturn:
    """Ctrl-C: leave the jobs to the queue, or cancel them."""
    left = [member for member in members if not standings([member])[member.name].is_over]
    choice = queue.options.on_interrupt
    if choice == "ask":
        choice = _ask(left) if sys.stdin.isatty() else "leave"
    folder = _shown(members[0].sweep_dir)
    if choice == "cancel":
        queue.cancel([job for member in left if (job := member.job()) is not None])
        _say(f"cancelled: jobs {_ids(left)}; the runs save first")
        until = time.monotonic() + _CANCEL_S
        while time.monotonic() < until and not all(one.is_over for one in standings(left).values()):
            time.sleep(min(1.0, queue.options.poll_s))
        _say("the same command again goes on from what they saved")
    else:
        _say(f"left to {queue.name}: jobs {_ids(left)}; esper sweep status {folder}, or the same command again")
    raise SystemExit(130)


def _ask(left: Sequence[Member]) -> str:
    sys.stdout.write(f"\n{len(left)} runs are waiting or running as jobs {_ids(left)}. Cancel them? [y/N] ")
    sys.stdout.flush()
    try:
        return "cancel" if sys.stdin.readline().strip().lower() in ("y", "yes") else "leave"
    except KeyboardInterrupt:
        return "leave"


def _ids(members: Sequence[Member]) -> str:
    """The jobs' ids, those of an array together: `12_[0-3,5]`, `17`."""
    arrays: dict[str, set[int]] = {}
    for member in members:
        if job := member.job():
            array, _, index = job.id.partition("_")
            arrays.setdefault(array.partition("@")[0], set()).update([int(index)] if index else [])
    return ", ".join(f"{array}_[{_ranges(indices)}]" if indices else array for array, indices in arrays.items())


def _ranges(numbers: Collection[int]) -> str:
    """`0-3,5` for 0, 1, 2, 3 and 5."""
    firsts = sorted(number for number in numbers if number - 1 not in numbers)
    lasts = sorted(number for number in numbers if number + 1 not in numbers)
    return ",".join(
        f"{first}-{last}" if last > first else str(first) for first, last in zip(firsts, lasts, strict=True)
    )


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
