"""Several members of a sweep in one process, which train at the same time: `python -m esper.sweep.pack K FOLDER...`."""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from esper import hanging, stopping
from esper.errors import EsperError, MemoryLimitError
from esper.launch.exits import error_line, print_traceback
from esper.sweep.job import begin, end_stopped
from esper.sweep.manifest import Member

if TYPE_CHECKING:
    from esper.sweep.room import Room

__all__ = ["AUTO", "LOG", "PackJob"]

AUTO = "auto"
LOG = "pack.log"
"""Output of a member, in its folder in `.sweep`."""
_OVER = ("finished", "failed")
_POLL_S = 0.2
_SWITCH_S = 0.0005
"""How long a thread may keep Python from the others: most have little to do before they queue the next steps."""

Ending = Literal["over", "stopped", "too large"]
"""A member's: it finished or failed, a signal stopped it, or it did not fit into memory beside the others."""


class PackJob:
    """Runs members side by side, and those that did not fit beside the others alone afterwards.

    Each has a thread, and all share the device, see `esper.turns`. A member that fails leaves the others as they are.
    A job of SLURM that is started again resumes the members that have not ended.

    Args:
        folders: the members' folders in `.sweep`.
        at_once: how many train at the same time; None: as many as memory allows.
    """

    def __init__(self, folders: Sequence[Path], *, at_once: int | None) -> None:
        self.folders = list(folders)
        self.at_once = at_once

    def __call__(self) -> None:
        """Run all to the end, or until a signal stops them; then requeue the job in SLURM.

        Raises:
            SystemExit: a signal stopped the job.
        """
        # submitit's handlers, which count the timeouts and requeue.
        requeue: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}
        members = [Member.read(folder) for folder in self.folders]
        left = {member.name: member for member in members if member.outcome().get("status") not in _OVER}

        def last_words(status: str, why: str) -> bool:
            for member in left.values():
                member.end(status, reason=why)
            return True

        # With a listener, a signal does not raise: the runs save, and `_Pack` starts no others.
        with stopping.handled(), hanging.watched(last_words), stopping.on_stop(lambda _number: None):
            try:
                for beside in _by_cwd(left.values()):
                    _Pack(left, beside, at_once=self.at_once).run()
            except KeyboardInterrupt:  # the second one
                last_words("interrupted", stopping.name_of(signal.SIGINT))
                os._exit(128 + signal.SIGINT)
            number = stopping.requested()
            if number is None or not left:
                return
            end_stopped(list(left.values()), number, requeue.get(number), reason=stopping.name_of(number))
            raise SystemExit(128 + number)

    def checkpoint(self) -> Any:
        """The submission that submitit requeues after a timeout: the same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _by_cwd(members: Iterable[Member]) -> list[list[Member]]:
    """Those of one working directory, which threads share, train side by side; usually all."""
    found: dict[str, list[Member]] = {}
    for member in members:
        found.setdefault(member.cwd, []).append(member)
    return list(found.values())


class _Pack:
    """Members of one working directory; `left` loses those that end."""

    def __init__(self, left: dict[str, Member], members: Sequence[Member], *, at_once: int | None) -> None:
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")  # 8 by default: more streams wait for one another
        sys.setswitchinterval(_SWITCH_S)
        from esper.turns import Turns  # torch, which launching does not need

        self._left, self._members = left, members
        self._turns = Turns()
        self._room: Room | None = None
        self._is_auto = at_once is None
        self._at_once = at_once or 1  # unknown until the first has trained
        self._ended: queue.SimpleQueue[tuple[Member, Ending]] = queue.SimpleQueue()
        self._threads: dict[str, threading.Thread] = {}

    def run(self) -> None:
        """Run the members until all have ended, or a signal has stopped those that run."""
        try:
            os.chdir(self._members[0].cwd)
        except OSError as error:
            for member in self._members:
                _fail(member, error, sys.stderr)
                del self._left[member.name]
            return
        if self._is_auto:
            from esper.sweep.room import Room

            self._room = Room(self._turns, grows=any(map(_grows, self._members)))
        too_large = self._run_members(list(self._members))
        self._at_once, self._room = 1, None
        self._run_members(too_large)

    def _run_members(self, waiting: list[Member]) -> list[Member]:
        """Run members; returns those that did not fit beside the others."""
        too_large = []
        while self._threads or (waiting and stopping.requested() is None):
            while waiting and len(self._threads) < self._at_once and stopping.requested() is None:
                self._start(waiting.pop(0))
            with contextlib.suppress(queue.Empty):
                member, ending = self._ended.get(timeout=_POLL_S)
                self._threads.pop(member.name).join()
                if ending == "over":
                    del self._left[member.name]
                elif ending == "too large":
                    too_large.append(member)
            if self._room is not None and (number := self._room.number()):
                self._at_once, self._room = number, None
        return too_large

    def _start(self, member: Member) -> None:
        is_alone = self._at_once == 1 and self._room is None

        def work() -> None:
            self._ended.put((member, self._run(member, is_alone=is_alone)))

        thread = threading.Thread(target=work, name=f"esper-{member.name}")
        self._threads[member.name] = thread
        thread.start()

    def _run(self, member: Member, *, is_alone: bool) -> Ending:
        """Train a member, and record how it ended."""
        try:
            with (member.folder / LOG).open("a", encoding="utf-8") as log, self._turns.run():
                try:
                    return _train(member, log, is_alone=is_alone)
                finally:
                    _free_memory()
        except BaseException as error:  # such as a full disk; the others go on
            _fail(member, error, sys.stderr)
            return "over"


def _train(member: Member, log: TextIO, *, is_alone: bool) -> Ending:
    from esper.launch.run import run

    try:
        config = begin(member, job_name=None)
        outcome = run(config, member.run_dir, sibling=lambda arm: member.sweep_dir / member.siblings[arm], output=log)
    except stopping.Stopped:
        return "stopped"
    except Exception as error:
        if isinstance(error, MemoryLimitError) and not is_alone:
            log.write(f"{error_line(error)}\nit runs again, alone, when the other runs have ended\n")
            return "too large"
        _fail(member, error, log)
        return "over"
    if outcome.exit_code > 128:
        return "stopped"
    member.end("finished", metric=outcome.metric)
    return "over"


def _grows(member: Member) -> bool:
    try:
        return member.config().morphogenetic.enable_tamiyo
    except EsperError:  # which its run will report
        return False


def _fail(member: Member, error: BaseException, log: TextIO) -> None:
    with contextlib.suppress(OSError):  # of a full disk: the outcome tells
        print_traceback(log)
    with contextlib.suppress(EsperError):
        member.end("failed", reason=error_line(error))


def _free_memory() -> None:
    """Return the memory of a run that has ended; the device has then done all that was queued."""
    import torch

    gc.collect()  # networks and their hooks refer to each other
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def _main() -> None:
    at_once, *folders = sys.argv[1:]
    PackJob([Path(folder) for folder in folders], at_once=None if at_once == AUTO else int(at_once))()


if __name__ == "__main__":
    _main()
