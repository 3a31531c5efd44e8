"""Signals that stop a run, from the first line of its process to the last.

Before training, a signal raises `Stopped` (SIGINT: KeyboardInterrupt) in the main thread, and other threads end at
their next `check`. From `on_stop` on, the training is asked to save and to stop at its next step boundary.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = [
    "Stopped", "check", "deferred", "exit_with_parent", "handled", "is_handled", "name_of", "on_stop", "received",
    "requested",
]  # fmt: skip

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_LEFT_IF_IGNORED = (signal.SIGHUP, signal.SIGUSR1)  # nohup ignores SIGHUP

_POLL_S = 1.0

_is_handled = False
_pipe: tuple[int, int] | None = None  # to which the interpreter writes the numbers of signals as they arrive
_received: int | None = None
_requested: int | None = None
_listeners: list[Callable[[int], None]] = []


class Stopped(SystemExit):
    """A signal stopped the process before training began.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Context manager: handle the signals that stop a run; changes nothing inside another one, or in other threads."""
    global _is_handled, _pipe, _received, _requested
    if _is_handled or threading.current_thread() is not threading.main_thread():  # others cannot handle signals
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in tuple(before.items()):
        if handler is None or (handler is signal.SIG_IGN and number in _LEFT_IF_IGNORED):  # None: not of Python
            del before[number]
    _is_handled, _received, _requested = True, None, None
    _pipe = _pipe or os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    fd_before = signal.set_wakeup_fd(_pipe[1], warn_on_full_buffer=False)
    for number in before:
        signal.signal(number, _on_signal)
    try:
        yield
    finally:
        signal.set_wakeup_fd(fd_before)
        received()  # empties the pipe
        for number, handler in before.items():
            signal.signal(number, handler)
        _is_handled, _received, _requested = False, None, None


def is_handled() -> bool:
    """Whether `handled` is active in this process."""
    return _is_handled


def requested() -> int | None:
    """The first signal since `handled` began, if any."""
    return _requested


def received() -> int | None:
    """As `requested`, but also while the main thread waits in a library, where Python calls no handlers."""
    global _received
    if not _is_handled or _pipe is None:
        return None
    with contextlib.suppress(BlockingIOError):
        numbers = [number for number in os.read(_pipe[0], 4096) if number in _SIGNALS]
        _received = _received or next(iter(numbers), None)
    return _requested or _received


def check() -> None:
    """Raise `Stopped` if a signal has come: for work before training, which leaves nothing to save."""
    if _requested is not None:
        raise Stopped(_requested)


@contextlib.contextmanager
def on_stop(ask: Callable[[int], None]) -> Iterator[None]:
    """Context manager: call `ask` with the number of every signal, instead of raising."""
    _listeners.append(ask)
    try:
        yield
    finally:
        _listeners.remove(ask)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Context manager: a signal that comes meanwhile raises at its end."""
    try:
        with on_stop(lambda _number: None):
            yield
    finally:
        if _requested == signal.SIGINT:
            raise KeyboardInterrupt
        check()


def name_of(number: int) -> str:
    """A signal's name in messages."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def _on_signal(number: int, _frame: FrameType | None) -> None:
    global _requested
    is_first, _requested = _requested is None, _requested or number
    for ask in tuple(_listeners):
        ask(number)
    if not _listeners and number == signal.SIGINT:
        raise KeyboardInterrupt
    if not _listeners and is_first:  # SLURM sends several, and the first one is being obeyed
        raise Stopped(number)


def exit_with_parent(parent: int) -> None:
    """From now on, end this process at once when its parent, the process of that number, has ended."""
    threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()


def _exit_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_S)
    os._exit(1)
