"""End a process that hangs: one that a signal told to stop, or that waits for data or for other ranks for too long.

The training reports its progress by `beat`. A thread counts the seconds in which the process ran without one, so that
a suspended job (SIGSTOP, a sleeping laptop) does not count.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from esper import stopping

__all__ = [
    "CLOSE_S",
    "SAVE_S",
    "LastWords",
    "beat",
    "end_process",
    "forget",
    "limit_silence",
    "silence_s",
    "steady",
    "waiting",
    "watched",
]

_POLL_S = 0.5
_STOP_S = 7.0
"""How long a process that was told to stop may go on without progress."""
_DECAY = 0.996
"""Of the memory of pauses, in every poll: half is left after 90 seconds."""
_LAST_WORDS_S = 2.5
SAVE_S = 30.0
"""How long it may take to save then."""
CLOSE_S = 20.0
"""How long the report, the trackers and the model registry may each take at the end."""

LastWords = Callable[[str, str], bool]
"""Records that the process ends, `failed` or `interrupted`, and why; returns whether this process is to say so."""


@dataclass(kw_only=True, eq=False)
class _Wait:
    what: str
    timeout_s: float
    setting: str
    seconds: float = 0.0


@dataclass(kw_only=True)
class _Counts:
    """What the thread counts, and the training resets: single values, which need no lock."""

    silent_s: float = 0.0
    expected_s: float = 0.0
    recent_s: float = 0.0  # longest silence of the last minutes: on CUDA a line of the log waits for many steps
    longest_s: float = 0.0  # silence that ended by itself
    longest_wait_s: float = 0.0
    is_steady: bool = False
    since_stop_s: float | None = None


_counts = _Counts()
_waits: list[_Wait] = []
_watched: list[tuple[LastWords, Path | None]] = []
_lock = threading.Lock()
_thread: threading.Thread | None = None


def beat(*, expected_s: float = 0.0) -> None:
    """Report progress.

    Args:
        expected_s: how long the next one may take; twice as long as those of the last minutes is always allowed.
    """
    silent_s, _counts.silent_s, _counts.expected_s = _counts.silent_s, 0.0, expected_s
    _counts.recent_s = max(_counts.recent_s, silent_s)
    if _counts.is_steady:
        _counts.longest_s = max(_counts.longest_s, silent_s)


def forget() -> None:
    """Note that the pauses so far, to start and to compile, say nothing about those to come."""
    _counts.recent_s = 0.0


@contextlib.contextmanager
def steady() -> Iterator[None]:
    """Context manager: work in which pauses are short, unlike compiling, growing or saving."""
    _counts.silent_s, _counts.is_steady = 0.0, True
    try:
        yield
    finally:
        _counts.is_steady = False


def silence_s() -> float:
    """Seconds without progress beyond the longest such pause so far; 0 in work that may pause."""
    return max(0.0, _counts.silent_s - _counts.longest_s) if _counts.is_steady else 0.0


def limit_silence(seconds: float) -> None:
    """Note that another rank, for which this one may wait, made progress so many seconds ago."""
    _counts.silent_s = min(_counts.silent_s, seconds)


@contextlib.contextmanager
def waiting(what: str, *, timeout_s: float, setting: str) -> Iterator[None]:
    """Context manager: end the process if this takes longer.

    Args:
        what: what the process waits for, for the message.
        timeout_s: how long it may, beyond the longest wait so far.
        setting: name of the setting that says so, for the message.
    """
    wait = _Wait(what=what, timeout_s=timeout_s + _counts.longest_wait_s, setting=setting)
    _waits.append(wait)
    try:
        yield
    finally:
        _waits.remove(wait)
        _counts.longest_wait_s = max(_counts.longest_wait_s, wait.seconds)


@contextlib.contextmanager
def watched(last_words: LastWords, *, log: Path | None = None) -> Iterator[None]:
    """Context manager: watch this process.

    Args:
        last_words: called before the process is ended; it gets two seconds. The innermost one decides whether a line is
            printed.
        log: file for the stacks of all threads.
    """
    global _thread
    entry = (last_words, log)
    with _lock:
        _watched.append(entry)
        if _thread is None:
            _thread = threading.Thread(target=_watch, name="esper-hanging", daemon=True)
            _thread.start()
    try:
        yield
    finally:
        with _lock:
            _watched.remove(entry)


def end_process(line: str, *, status: str = "failed", exit_code: int = 1) -> NoReturn:
    """End this process at once, although threads hang: last words, their stacks in the log, one line on stderr."""
    speaker = threading.Thread(target=_speak, args=(line, status), daemon=True)  # a disk or a pipe may hang too
    speaker.start()
    for _ in range(5):
        speaker.join(_LAST_WORDS_S / 5)  # not all of it at once: the process may be suspended meanwhile
    # A stopped decoder would not see that its parent is gone. Last: training that misses it would have its say, too.
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(exit_code)


def _speak(line: str, status: str) -> None:
    entries = tuple(reversed(_watched))
    log = next((log for _, log in entries if log), None)
    if log is not None:
        with contextlib.suppress(OSError), log.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
            file.flush()
            faulthandler.dump_traceback(file)
    answers = []
    for last_words, _ in entries:
        with contextlib.suppress(Exception, SystemExit):
            answers.append(last_words(status, line))
    if not answers or answers[0]:
        sys.stderr.write(f"error: {line}" + (f"; stacks of all threads: {log}\n" if log else "\n"))
        sys.stderr.flush()


def _watch() -> None:
    global _thread
    last = time.monotonic()
    while True:
        time.sleep(_POLL_S)
        last, seconds = time.monotonic(), min(time.monotonic() - last, 2 * _POLL_S)
        with _lock:
            if not _watched:
                _thread = None
                return
        _count(seconds)
        for wait in tuple(_waits):
            wait.seconds += seconds
            if wait.seconds > wait.timeout_s:
                end_process(f"{wait.what} takes longer than {wait.timeout_s:.0f} s; see {wait.setting}")
        allowed_s = max(_STOP_S, _counts.expected_s, 2 * _counts.recent_s)
        if (number := stopping.received()) and min(_counts.silent_s, _counts.since_stop_s or 0.0) > allowed_s:
            why = f"{stopping.name_of(number)}, but no progress for {allowed_s:.0f} s, so the run ended without saving"
            end_process(why, status="interrupted", exit_code=128 + number)


def _count(seconds: float) -> None:
    _counts.silent_s += seconds
    _counts.recent_s *= _DECAY
    if stopping.received() is None:
        _counts.since_stop_s = None
    else:
        _counts.since_stop_s = (_counts.since_stop_s or 0.0) + seconds
