"""`esper sync`: report runs to their trackers from their journals; points that a tracker holds are skipped."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from esper.configs.identity import outputs_folder
from esper.configs.paths import absolute_url
from esper.errors import EsperError, RunError
from esper.redact import printable
from esper.tracking.addresses import recorded_tracking, remember_address
from esper.tracking.files import read_members
from esper.tracking.journal import read, run_folders
from esper.tracking.liveness import may_run
from esper.tracking.metrics import UPLOADED
from esper.tracking.mlflow import MlflowRun
from esper.tracking.mlflow_sweep import report_sweep
from esper.tracking.tracker_thread import short_message
from esper.tracking.trackers import Tracker, trackers

__all__ = ["main", "sync"]

_STATE = (".lock", ".mlflow.lock", ".wandb.lock", "bus.json", "mlflow.json", "wandb.json", "wandb")
"""What reporting a run reads and writes in its folder, besides the files that it uploads."""

TrackersOf = Callable[[Mapping[str, Any], Path], Iterable[Tracker]]


def main(paths: Sequence[Path], uri: str | None, *, extra_trackers: TrackersOf = lambda *_: ()) -> int:
    """Update the trackers of runs and print a line for each; idempotent. Returns the exit code.

    A sweep gets a parent run in MLflow. In a folder where no sweep was launched, all runs count as its members.

    Args:
        paths: folders of runs, or folders that hold some at any depth.
        uri: report to this MLflow tracking URI only; None is each run's own trackers, MLflow if it has none, at
            addresses that the user has used on this machine.
        extra_trackers: (config, run_dir) to further trackers of a run; not used with a `uri`.

    Raises:
        RunError: a folder holds no run.
    """
    remember_address(uri and absolute_url(uri, Path.cwd()))
    run_dirs_by_path = [(path.absolute(), _find_runs(path)) for path in paths]
    exit_code = 0
    for path, run_dirs in run_dirs_by_path:
        for run_dir in run_dirs:
            exit_code |= sync(run_dir, uri=uri, extra_trackers=extra_trackers)
        children = [run_dir for run_dir in run_dirs if run_dir.absolute().parent == path]
        names = read_members(path)
        members = [run_dir for run_dir in children if not names or run_dir.name in names]
        try:
            num_members = report_sweep(path, members, uri=uri)
        except Exception as error:  # any error of MLflow
            _print(f"{path}: no parent run in MLflow: {short_message(error)}")
            exit_code = 1
        else:
            if num_members:
                _print(f"{path}: parent of {num_members} runs in MLflow")
    return exit_code


def sync(run_dir: Path, *, uri: str | None = None, extra_trackers: TrackersOf = lambda *_: ()) -> int:
    """Update a run's trackers and print a line for each; returns 1 if one failed, else 0."""
    exit_code = 0
    run_dir = run_dir.absolute()
    try:
        _require_plain(run_dir)
        is_alive = may_run(run_dir)  # before reading: a run that ends in between must not count as killed
        events = list(read(run_dir / "journal.jsonl"))
        selected = _trackers(events, run_dir, uri, extra_trackers)
    except EsperError as error:  # damaged journal or unusable setting: continue with the other runs
        _print(f"{run_dir}: failed: {short_message(error)}")
        return 1
    if not selected:
        _print(f"{run_dir}: nothing to report: it never started")
    for tracker in selected:
        try:
            outcome = _report(tracker, events, is_alive=is_alive)
        except Exception as error:  # any error of the tracker's library: continue with the others
            outcome, exit_code = f"failed: {short_message(error)}", 1
        _print(f"{run_dir}: {tracker.name}: {outcome}")
    return exit_code


def _find_runs(path: Path) -> list[Path]:
    if run_dirs := run_folders(path):
        return run_dirs
    raise RunError(
        f"{path}: no journal.jsonl in it; name a run's folder, outputs/EXPERIMENT/RUN, or a folder of such folders"
    )


def _require_plain(run_dir: Path) -> None:
    """Refuse links and what is no file: the folder may be somebody else's, and a link lead anywhere."""
    for name in (*UPLOADED, *_STATE):
        path = run_dir / name
        is_plain = path.is_dir() if name == "wandb" else path.is_file()
        if path.is_symlink() or (path.exists() and not is_plain):
            raise RunError(f"{path} is a link or no file; esper sync stays inside of the run folder: copy it there")


def _trackers(
    events: Sequence[dict[str, Any]], run_dir: Path, uri: str | None, extra_trackers: TrackersOf
) -> Sequence[Tracker]:
    """Where to report the run; nowhere if it never started."""
    started = next((event for event in reversed(events) if event["kind"] == "run_started"), None)
    if started is None:
        return []
    config = recorded_tracking(started["config"], uri=uri, run_dir=run_dir)
    others = list(extra_trackers(started["config"], run_dir)) if uri is None else []
    if uri is not None or (config.name == "none" and not others):
        config = dataclasses.replace(config, name="mlflow")
    outputs_dir = outputs_folder(run_dir, experiment_name=started["experiment_name"])
    return [*trackers(config, run_dir=run_dir, outputs_dir=outputs_dir, is_contained=True), *others]


def _report(tracker: Tracker, events: Sequence[dict[str, Any]], *, is_alive: bool) -> str:
    with contextlib.closing(tracker.open()) as run:
        run.ingest(events)
        if is_alive:
            return f"still running, {run.num_logged} new points"
        run.finish()
        last = next(event for event in reversed(events) if event["kind"] in ("run_started", "run_ended"))
        outcome = f"{last.get('status', 'killed')}, {run.num_logged} new points"
        if isinstance(run, MlflowRun) and run.left_out:
            outcome += f"; not uploaded: {run.left_out}, which lies or leads outside of the run folder"
        return outcome


def _print(line: str) -> None:
    sys.stdout.write(f"{printable(line)}\n")
