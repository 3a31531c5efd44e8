"""`esper sync`: report runs to their trackers from their journals, whether they were reported before or not."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from esper.configs import TrackingConfig
from esper.configs.identity import outputs_folder
from esper.errors import EsperError, RunError
from esper.tracking.follow import reason
from esper.tracking.journal import read, run_folders
from esper.tracking.members import read_members
from esper.tracking.sweep import report_sweep
from esper.tracking.trackers import Reported, Target, trackers

__all__ = ["is_locked", "main", "sync"]


Also = Callable[[Mapping[str, Any], Path], Iterable[Target[Reported]]]


def main(paths: Sequence[Path], uri: str | None, *, also: Also = lambda *_: ()) -> int:
    """Bring trackers up to date about runs, one line each; doing so again adds nothing. Returns the exit code.

    A sweep gets a parent in MLflow; where none was launched, the runs that lie in the folder are taken for one.

    Args:
        paths: folders of runs, or folders that hold some at any depth.
        uri: MLflow tracking URI, and no other tracker; None is each run's own trackers, MLflow if it has none.
        also: where else a run of this configuration, in this folder, is reported unless a `uri` is given.

    Raises:
        RunError: a folder holds no run.
    """
    found = [(path.absolute(), _find_runs(path)) for path in paths]
    exit_code = 0
    for path, run_dirs in found:
        for run_dir in run_dirs:
            exit_code |= sync(run_dir, uri=uri, also=also)
        inside = [run_dir for run_dir in run_dirs if run_dir.absolute().parent == path]
        asked = read_members(path)
        members = [run_dir for run_dir in inside if not asked or run_dir.name in asked]
        try:
            num_children = report_sweep(path, members, uri=uri)
        except Exception as error:  # as above: of MLflow's
            sys.stdout.write(f"{path}: no parent in MLflow: {reason(error)}\n")
            exit_code = 1
        else:
            if num_children:
                sys.stdout.write(f"{path}: the parent of {num_children} runs in MLflow\n")
    return exit_code


def sync(run_dir: Path, *, uri: str | None = None, also: Also = lambda *_: ()) -> int:
    """Bring a run's trackers up to date, a line for each; returns 1 if one could not be, else 0."""
    exit_code = 0
    run_dir = run_dir.absolute()
    try:
        is_alive = is_locked(run_dir)  # asked first: a run that ends meanwhile is synced again, not taken for dead
        events = list(read(run_dir / "journal.jsonl"))
        targets = _targets(events, run_dir, uri, also)
    except EsperError as error:  # neither a damaged journal nor a useless setting may keep the others back
        sys.stdout.write(f"{run_dir}: failed: {reason(error)}\n")
        return 1
    if not targets:
        sys.stdout.write(f"{run_dir}: nothing to report: it never started\n")
    for tracker in targets:
        try:
            outcome = _report(tracker, events, is_alive=is_alive)
        except Exception as error:  # whatever it is of the tracker's, it must not keep the others back
            outcome, exit_code = f"failed: {reason(error)}", 1
        sys.stdout.write(f"{run_dir}: {tracker.name}: {outcome}\n")
    return exit_code


def _find_runs(path: Path) -> list[Path]:
    if found := run_folders(path):
        return found
    raise RunError(
        f"{path}: no journal.jsonl in it; name a run's folder, outputs/EXPERIMENT/RUN, or one that holds such"
    )


def _targets(
    events: Sequence[dict[str, Any]], run_dir: Path, uri: str | None, also: Also
) -> Sequence[Target[Reported]]:
    """Whom to tell; nobody if the run never started."""
    started = next((event for event in reversed(events) if event["kind"] == "run_started"), None)
    if started is None:
        return []
    config = TrackingConfig(**started["config"]["tracking"])
    others = list(also(started["config"], run_dir)) if uri is None else []
    if uri is not None or (config.name == "none" and not others):
        config = dataclasses.replace(config, name="mlflow", uri=uri or config.uri)
    outputs_dir = outputs_folder(run_dir, experiment_name=started["experiment_name"])
    return [*trackers(config, run_dir=run_dir, outputs_dir=outputs_dir), *others]


def _report(tracker: Target[Reported], events: Sequence[dict[str, Any]], *, is_alive: bool) -> str:
    with contextlib.closing(tracker.open()) as run:
        run.ingest(events)
        if is_alive:
            return f"still running, {run.num_logged} new points"
        run.finish()
        last = next(event for event in reversed(events) if event["kind"] in ("run_started", "run_ended"))
        return f"{last.get('status', 'killed')}, {run.num_logged} new points"


def is_locked(run_dir: Path) -> bool:
    """Whether a process holds the run folder's lock."""
    file = run_dir / ".lock"
    if not file.exists():
        return False
    try:
        with FileLock(file, timeout=0):
            return False
    except Timeout:
        return True
