"""A thread that tails a run's journal and updates a tracker; a failing tracker never stops the run."""

from __future__ import annotations

import contextlib
import shlex
import threading
import time
from collections.abc import Callable
from pathlib import Path

from esper import stopping
from esper.errors import RunError, WriteError
from esper.redact import printable, redact
from esper.tracking.journal import read_from
from esper.tracking.trackers import Tracker, TrackerRun

__all__ = ["TrackerThread", "short_message"]

_MAX_DELAY_S = 300.0
_MAX_LINE = 160
_POLL_S = 0.1


class TrackerThread:
    """Daemon thread that reads a run's journal every `interval_s` and reports new events to a tracker.

    Construct it after the journal has been rewound for a resume. Reporting begins with the first new event, or after
    one interval: importing a tracker's library takes seconds, which would delay the first step. After an error it
    retries with exponential back-off from the start of the journal (trackers skip what they hold already).

    Args:
        tracker: where to report.
        interval_s: seconds between reports.
        run_dir: folder of the run, with its journal.
        warn: called at most once, from this thread or from `close`: two failures in a row, or a failure at the end.
    """

    def __init__(self, tracker: Tracker, *, interval_s: float, run_dir: Path, warn: Callable[[str], None]) -> None:
        self._tracker = tracker
        self._interval_s = interval_s
        self._run_dir = run_dir
        self._warn = warn
        self._warned = threading.Lock()  # acquired once and never released
        self._run: TrackerRun | None = None
        self._offset = 0
        self._size = (run_dir / "journal.jsonl").stat().st_size
        self._closing = threading.Event()
        # A daemon, so that a tracker that hangs cannot keep the process alive.
        self._thread = threading.Thread(target=self._tail, name=f"esper-{tracker.name}", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float = 15.0) -> None:
        """Report the remaining events, the final status and the files; wait for that at most `timeout_s`.

        A process that was told to stop waits half as long.
        Safe to call twice.
        """
        timeout_s = timeout_s / 2 if stopping.requested() else timeout_s
        self._closing.set()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._warn_once(TimeoutError(f"not done within {timeout_s:g} s"))

    def _tail(self) -> None:
        self._wait_for_training()
        num_failures = 0
        while True:
            closing = self._closing.is_set()  # read before the journal, which is complete once this is set
            try:
                self._report(is_last=closing)
                num_failures = 0
            except Exception as error:  # any error of the tracker's library
                self._drop_run()
                num_failures += 1
                if num_failures > 1:
                    self._warn_once(error)
            if closing and num_failures != 1:
                self._drop_run()
                return
            self._closing.wait(min(self._interval_s * 2.0 ** min(num_failures, 100), _MAX_DELAY_S))

    def _wait_for_training(self) -> None:
        latest = time.monotonic() + self._interval_s
        journal = self._run_dir / "journal.jsonl"
        with contextlib.suppress(FileNotFoundError):  # the training finds that its folder is gone
            while journal.stat().st_size == self._size and time.monotonic() < latest:
                if self._closing.wait(_POLL_S):
                    return

    def _report(self, *, is_last: bool) -> None:
        if self._run is None:
            self._run = self._tracker.open()
            self._offset = 0
        events, self._offset = read_from(self._run_dir / "journal.jsonl", self._offset)
        if events:
            self._run.ingest(events)
        if is_last:
            self._run.finish()

    def _drop_run(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            with contextlib.suppress(Exception):  # the cause was reported, or will be by the next attempt
                run.close()

    def _warn_once(self, error: Exception) -> None:
        if not self._warned.acquire(blocking=False):
            return
        where, why, catch_up = f"{self._tracker.name} at {self._tracker.place}", short_message(error), "catches up"
        sync = f"esper sync {shlex.quote(str(self._run_dir))}"
        text = f"{where} is behind ({why}); training continues, and `{sync}` {catch_up}"
        if isinstance(error, RunError):  # it says what has to be done first
            text = f"{where}: {why}; training continues, and after that `{sync}` {catch_up}"
        with contextlib.suppress(WriteError):  # the training finds that the journal cannot be written
            self._warn(text)


def short_message(error: Exception) -> str:
    """The first line of an error's message, without credentials; of other libraries, at most 160 characters."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]  # SQLAlchemy adds the data
    return printable(redact(first))[: None if isinstance(error, RunError) else _MAX_LINE]
