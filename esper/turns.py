"""Turns of runs that train in one process at the same time, see `hydra/launcher=packed`.

One run at a time has the turn: it alone uses Python, the host's libraries and the allocators. It passes the turn on
when it has queued some steps, and while it waits for the device, a disk or a server. On the device the work of all runs
overlaps, each on a stream of its own. Torch's global state (random generators, default type, flags of cuDNN) goes with
the turn, so that every run computes what it would compute alone; a CUDA graph is captured while no other run queues
work or allocates.

Each run has a thread, and other threads that work for it carry its context. Elsewhere these functions do nothing.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch

__all__ = ["Turn", "Turns", "current", "is_shared", "pass_on", "paused", "step_done", "wait_for", "wait_for_device"]

STEPS = 8
"""Optimizer steps of a turn."""
APART = 1
"""Turns by which a run begins behind the one before it, lest epochs end together and leave the device idle."""
_AHEAD = 2
"""Turns whose work may be queued on the device: more would delay a stop and let one run get ahead of the others."""


class _GlobalState:
    """Torch's global state as it is now; on CUDA, random states of its own that begin with the same values."""

    def __init__(self) -> None:
        # Whole states, not values: a graph reads seed and offset from tensors of the state that it was captured with.
        generators = torch.cuda.default_generators if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
        self._generators = [generator.clone_state() for generator in generators]
        self.save()

    def save(self) -> None:
        cudnn = torch.backends.cudnn
        self._on_cpu = torch.get_rng_state()
        self._dtype, self._flags = torch.get_default_dtype(), (cudnn.benchmark, cudnn.deterministic)

    def restore(self) -> None:
        cudnn = torch.backends.cudnn
        torch.set_rng_state(self._on_cpu)
        torch.set_default_dtype(self._dtype)
        cudnn.benchmark, cudnn.deterministic = self._flags
        for default, own in zip(torch.cuda.default_generators, self._generators, strict=False):
            default.graphsafe_set_state(own)


class Turns:
    """The runs that train in this process; create it before any of them begins.

    Attributes:
        runs: those that have begun and not ended.
        num_steps: optimizer steps done since the last one began.
        kept: tensors on the device that they share, see `esper.data.sharing`.
    """

    def __init__(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.init()  # type: ignore[no-untyped-call]
        self.runs: list[Turn] = []
        self.num_steps = 0
        self.kept: list[Any] = []
        self._initial = _GlobalState()
        self._lock = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()  # in the order in which they came
        self._is_taken = False

    @contextlib.contextmanager
    def run(self) -> Iterator[Turn]:
        """Context manager: this thread is a run's; it has the turn, or waits for it, until the end."""
        with self.between():
            self._initial.restore()
            turn = Turn(self)
            token = _turn.set(turn)
            self.runs.append(turn)
            self.num_steps = 0
            try:
                yield turn
            finally:
                self.runs.remove(turn)
                _turn.reset(token)
                self._initial.restore()

    @contextlib.contextmanager
    def between(self) -> Iterator[None]:
        """Context manager: all runs wait."""
        self.acquire()
        try:
            yield
        finally:
            self.release()

    def acquire(self) -> None:
        """Wait for the turn."""
        with self._lock:
            if not self._is_taken:
                self._is_taken = True
                return
            mine = threading.Lock()
            mine.acquire()
            self._waiting.append(mine)
        mine.acquire()

    def release(self) -> None:
        """Give the turn to the run that has waited longest."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._is_taken = False

    def pass_on(self) -> None:
        """As `release` and `acquire`, but with nobody in between: it is behind those that wait now."""
        with self._lock:
            if not self._waiting:
                return
            mine = threading.Lock()
            mine.acquire()
            self._waiting.append(mine)
            self._waiting.popleft().release()
        mine.acquire()


class Turn:
    """A run's place among the others.

    Attributes:
        group: all of them.
        loaded: the data that it has read or shares, see `esper.data.sharing`.
    """

    def __init__(self, group: Turns) -> None:
        self.group = group
        self.loaded: dict[Any, Any] = {}
        self._num_steps = 0
        self._num_others = len(group.runs)
        self._state = _GlobalState()
        self._state.restore()  # else what comes before the first pause would change the state that it was copied from
        self._has_turn = True
        self._marks: deque[torch.cuda.Event] = deque()  # ends of the turns whose work the device may not have done

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Context manager: the others go on meanwhile; use neither CUDA nor random numbers inside."""
        if not self._has_turn:
            yield
            return
        with self._away():
            self.group.release()
            try:
                yield
            finally:
                self.group.acquire()

    @contextlib.contextmanager
    def _away(self) -> Iterator[None]:
        self._has_turn = False
        self._state.save()
        try:
            yield
        finally:
            self._state.restore()
            self._has_turn = True

    def step_done(self) -> None:
        """Count an optimizer step; some of them are a turn."""
        self.group.num_steps += 1
        self._num_steps += 1
        if self._num_steps == 1:
            for _ in range(APART * self._num_others):
                self.pass_on()
        if self._num_steps % STEPS == 0:
            self.pass_on()

    def pass_on(self) -> None:
        """Let each of the others have a turn; wait until the device has done what was queued before the last two."""
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            if torch.cuda.is_current_stream_capturing():
                return
            self._marks.append(_mark())
        late = self._marks.popleft() if len(self._marks) > _AHEAD else None
        if late is not None:
            with self.paused():
                late.synchronize()
        elif self._has_turn:
            with self._away():
                self.group.pass_on()


_turn: ContextVar[Turn | None] = ContextVar("turn", default=None)


def current() -> Turn | None:
    """The place of the run that this code works for; None if it has its process to itself."""
    return _turn.get()


def is_shared() -> bool:
    """Whether other runs train in this process now."""
    turn = _turn.get()
    return turn is not None and len(turn.group.runs) > 1


def step_done() -> None:
    """Count an optimizer step; after some of them the others have their turns."""
    if (turn := _turn.get()) is not None:
        turn.step_done()


def pass_on() -> None:
    """Let the others have their turns, in the middle of long work."""
    if (turn := _turn.get()) is not None:
        turn.pass_on()


def paused() -> contextlib.AbstractContextManager[None]:
    """Context manager: the others go on while this run waits for something else than the device."""
    turn = _turn.get()
    return turn.paused() if turn is not None else contextlib.nullcontext()


def wait_for(event: torch.cuda.Event) -> None:
    """Wait until the device has reached an event; the others go on meanwhile."""
    if not event.query():  # type: ignore[no-untyped-call]
        with paused():
            event.synchronize()


def wait_for_device() -> None:
    """Let the others go on until the device has done what this thread has queued; without others, do not wait."""
    turn = _turn.get()
    if turn is None or not torch.cuda.is_initialized() or torch.cuda.is_current_stream_capturing():  # type: ignore[no-untyped-call]
        return
    mark = _mark()
    with turn.paused():
        mark.synchronize()


def _mark() -> torch.cuda.Event:
    event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    event.record()
    return event
