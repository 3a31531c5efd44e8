"""The summary of a sweep that has ended: a page that compares its runs, and a parent run in MLflow."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from esper.configs import TrackingConfig
from esper.console import Console
from esper.errors import EsperError
from esper.launch.exits import error_line
from esper.launch.registration import register
from esper.tracking.liveness import killed_reason
from esper.tracking.mlflow_sweep import report_sweep
from esper.tracking.sync import sync
from esper.tracking.tracker_thread import short_message

__all__ = ["summarize"]


def summarize(sweep_dir: Path, tracking: Mapping[str, TrackingConfig]) -> None:
    """Write and print the comparison of the runs, then report them to MLflow below one parent, and register them.

    An error is printed in one line; it does not change the result of the runs.

    Args:
        sweep_dir: the folder that holds the run folders.
        tracking: settings of each run, by name.
    """
    run_dirs = {name: sweep_dir / name for name in tracking if (sweep_dir / name / "journal.jsonl").is_file()}
    in_mlflow = [run_dir for name, run_dir in run_dirs.items() if tracking[name].name in ("mlflow", "both")]
    for run_dir in in_mlflow:
        # A SLURM job only writes the journal; a run that was killed is still running in MLflow.
        if not (run_dir / "mlflow.json").is_file() or killed_reason(run_dir):
            sync(run_dir)
        try:
            register(run_dir, tracking[run_dir.name])
        except Exception as error:  # MLflow and its database drivers raise many types
            sys.stdout.write(f"{run_dir}: not registered ({short_message(error)}); the same command tries again\n")
    if len(run_dirs) < 2:
        return
    try:
        _compare(sweep_dir, list(run_dirs.values()))
    except EsperError as error:
        sys.stdout.write(f"\nno comparison: {error_line(error)}\n")
    try:
        report_sweep(sweep_dir, in_mlflow)
    except Exception as error:  # MLflow and its database drivers raise many types
        again = f"esper sync {shlex.quote(str(sweep_dir))}"
        sys.stdout.write(f"no parent run in MLflow ({short_message(error)}); to try again: {again}\n")


def _compare(sweep_dir: Path, run_dirs: list[Path]) -> None:
    from esper.report import comparison, runs  # imports Matplotlib and SciPy

    report = comparison.compare(runs.from_folders(run_dirs))
    if not report.arms:
        return
    page = sweep_dir / "comparison.html"
    comparison.write(report, page)
    console = Console()
    console.print()
    for part in comparison.printed(report):
        console.print(part)
    sys.stdout.write(f"\n{page}\n")
