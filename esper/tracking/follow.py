"""The thread that brings a tracker up to date while a run trains; whatever happens to it, the run goes on."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

from esper.tracking.environment import without_credentials
from esper.tracking.journal import tail
from esper.tracking.trackers import Reported, Target

__all__ = ["Follower", "reason"]

_MAX_DELAY_S = 300.0
_MAX_REASON = 160
_POLL_S = 0.1


class Follower:
    """Owner of a daemon thread that reads a run's journal and reports it, once every `interval_s`.

    Make it when the journal has been rewound to where the run goes on from. It begins when the run has journalled
    something more, or after an interval: importing a tracker would hold up the first step by seconds. After an error it
    tries again, ever more rarely, from the journal's first line on (trackers log nothing twice).

    Args:
        tracker: where to report.
        interval_s: how often.
        run_dir: folder of the run, with its journal.
        warn: told once, from this thread or from `close`, if reporting fails twice in a row or at the end.
    """

    def __init__(
        self, tracker: Target[Reported], *, interval_s: float, run_dir: Path, warn: Callable[[str], None]
    ) -> None:
        self._tracker = tracker
        self._interval_s = interval_s
        self._run_dir = run_dir
        self._warn = warn
        self._warned = threading.Lock()  # taken for good by the first that warns
        self._run: Reported | None = None
        self._offset = 0
        self._size = (run_dir / "journal.jsonl").stat().st_size
        self._closing = threading.Event()
        # A daemon: a tracker that hangs must not keep the process.
        self._thread = threading.Thread(target=self._follow, name=f"esper-{tracker.name}", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float = 15.0) -> None:
        """Report what is left, the final status and the files; after `timeout_s` the thread is left to itself.

        Safe to call twice.
        """
        self._closing.set()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._warn_once(f"not done within {timeout_s:g} s")

    def _follow(self) -> None:
        self._wait_for_training()
        num_failures = 0
        while True:
            closing = self._closing.is_set()  # asked first: what was written before closing is in the file by now
            try:
                self._report(is_last=closing)
                num_failures = 0
            except Exception as error:  # whatever the tracker, and what lies under it, may raise
                self._drop_run()
                num_failures += 1
                if num_failures > 1:
                    self._warn_once(reason(error))
            if closing and num_failures != 1:
                self._drop_run()
                return
            self._closing.wait(min(self._interval_s * 2.0 ** min(num_failures, 100), _MAX_DELAY_S))

    def _wait_for_training(self) -> None:
        latest = time.monotonic() + self._interval_s
        journal = self._run_dir / "journal.jsonl"
        while journal.stat().st_size == self._size and time.monotonic() < latest and not self._closing.wait(_POLL_S):
            pass

    def _report(self, *, is_last: bool) -> None:
        if self._run is None:
            self._run = self._tracker.open()
            self._offset = 0
        events, self._offset = tail(self._run_dir / "journal.jsonl", self._offset)
        if events:
            self._run.ingest(events)
        if is_last:
            self._run.finish()

    def _drop_run(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            # What is wrong with the tracker has been told, or shows in the next report.
            with contextlib.suppress(Exception):
                run.close()

    def _warn_once(self, why: str) -> None:
        if self._warned.acquire(blocking=False):
            self._warn(
                f"{self._tracker.name} at {self._tracker.place} is behind ({why}); the run goes on regardless, and "
                f"`esper sync {self._run_dir}` catches up"
            )


def reason(error: Exception) -> str:
    """The first line of an error, without credentials, cut to what a terminal line takes."""
    text = str(error).strip() or type(error).__name__
    return without_credentials(text.splitlines()[0])[:_MAX_REASON]
