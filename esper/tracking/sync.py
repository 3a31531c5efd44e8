"""`esper sync`: report runs to MLflow from their journals, whether they were reported before or not."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from esper.configs import TrackingConfig
from esper.configs.identity import outputs_folder
from esper.errors import RunError
from esper.tracking.follow import reason
from esper.tracking.journal import read
from esper.tracking.mlflow import MlflowRun

__all__ = ["main"]


def main(paths: Sequence[Path], uri: str | None) -> int:
    """Bring MLflow up to date about runs, one line each; doing so again adds nothing. Returns the exit code.

    Args:
        paths: folders of runs, or folders that hold some at any depth.
        uri: MLflow tracking URI; None is each run's own.

    Raises:
        RunError: a folder holds no run.
    """
    runs = [run_dir for path in paths for run_dir in _find_runs(path)]
    exit_code = 0
    for run_dir in runs:
        try:
            outcome = _sync(run_dir, uri)
        except Exception as error:  # one run that fails, for whatever reason of MLflow's, must not keep the others back
            outcome, exit_code = f"failed: {reason(error)}", 1
        sys.stdout.write(f"{run_dir}: {outcome}\n")
    return exit_code


def _find_runs(path: Path) -> list[Path]:
    if (path / "journal.jsonl").is_file():
        return [path]
    if found := sorted(journal.parent for journal in path.rglob("journal.jsonl")):
        return found
    raise RunError(
        f"{path}: no journal.jsonl in it; name a run's folder, outputs/EXPERIMENT/RUN, or one that holds such"
    )


def _sync(run_dir: Path, uri: str | None) -> str:
    run_dir = run_dir.absolute()
    is_alive = _is_alive(run_dir)  # asked first: a run that ends meanwhile is synced again, not taken for dead
    events = list(read(run_dir / "journal.jsonl"))
    started = next((event for event in reversed(events) if event["kind"] == "run_started"), None)
    if started is None:
        return "nothing to report: it never started"
    config = TrackingConfig(**{**started["config"]["tracking"], **({"uri": uri} if uri else {})})
    outputs_dir = outputs_folder(run_dir, experiment_name=started["experiment_name"])
    with contextlib.closing(MlflowRun(config, run_dir=run_dir, outputs_dir=outputs_dir)) as run:
        run.ingest(events)
        if is_alive:
            return f"still running, {run.num_logged} new points"
        run.finish()
        ended = run.history.ended
        return f"{ended['status'] if ended else 'killed'}, {run.num_logged} new points"


def _is_alive(run_dir: Path) -> bool:
    """Whether a process holds the run folder's lock."""
    file = run_dir / ".lock"
    if not file.exists():
        return False
    try:
        with FileLock(file, timeout=0):
            return False
    except Timeout:
        return True
