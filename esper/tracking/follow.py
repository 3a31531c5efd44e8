"""The thread that brings MLflow up to date while a run trains; whatever happens to MLflow, the run goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from esper.configs import TrackingConfig
from esper.tracking.environment import without_credentials
from esper.tracking.journal import tail
from esper.tracking.mlflow import MlflowRun, tracking_uri

__all__ = ["Follower", "reason"]

_MAX_DELAY_S = 300.0
_MAX_REASON = 160
_POLL_S = 0.1


class Follower:
    """Owner of a daemon thread that reads a run's journal and reports it, once every `flush_interval_s`.

    Make it when the journal has been rewound to where the run goes on from. It begins when the run has journalled
    something more, or after an interval: importing MLflow would hold up the first step by seconds. After an error it
    tries again, ever more rarely, from the journal's first line on (`MlflowRun` logs nothing twice).

    Args:
        config: where to report, how often.
        run_dir: folder of the run, with its journal.
        outputs_dir: folder of the default database.
        warn: told once, from this thread or from `close`, if reporting fails twice in a row or at the end.
    """

    def __init__(
        self, config: TrackingConfig, *, run_dir: Path, outputs_dir: Path, warn: Callable[[str], None]
    ) -> None:
        self._config = config
        self._run_dir = run_dir
        self._outputs_dir = outputs_dir
        self._warn = warn
        self._warned = threading.Lock()  # taken for good by the first that warns
        self._run: MlflowRun | None = None
        self._offset = 0
        self._size = (run_dir / "journal.jsonl").stat().st_size
        self._closing = threading.Event()
        # A daemon: a tracker that hangs must not keep the process.
        self._thread = threading.Thread(target=self._follow, name="esper-mlflow", daemon=True)
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
            except Exception as error:  # whatever MLflow, and what lies under it, may raise
                self._drop_run()
                num_failures += 1
                if num_failures > 1:
                    self._warn_once(reason(error))
            if closing and num_failures != 1:
                self._drop_run()
                return
            self._closing.wait(min(self._config.flush_interval_s * 2**num_failures, _MAX_DELAY_S))

    def _wait_for_training(self) -> None:
        latest = time.monotonic() + self._config.flush_interval_s
        journal = self._run_dir / "journal.jsonl"
        while journal.stat().st_size == self._size and time.monotonic() < latest and not self._closing.wait(_POLL_S):
            pass

    def _report(self, *, is_last: bool) -> None:
        if self._run is None:
            self._run = MlflowRun(self._config, run_dir=self._run_dir, outputs_dir=self._outputs_dir)
            self._offset = 0
        events, self._offset = tail(self._run_dir / "journal.jsonl", self._offset)
        if events:
            self._run.ingest(events)
        if is_last:
            self._run.finish()

    def _drop_run(self) -> None:
        if self._run is not None:
            self._run.close()
            self._run = None

    def _warn_once(self, why: str) -> None:
        if self._warned.acquire(blocking=False):
            uri = without_credentials(tracking_uri(self._config, outputs_dir=self._outputs_dir))
            self._warn(
                f"MLflow at {uri} is behind ({why}); the run goes on regardless, and `esper sync {self._run_dir}` "
                "catches up"
            )


def reason(error: Exception) -> str:
    """The first line of an error, without credentials, cut to what a terminal line takes."""
    text = str(error).strip() or type(error).__name__
    return without_credentials(text.splitlines()[0])[:_MAX_REASON]
