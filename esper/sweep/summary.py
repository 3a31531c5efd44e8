"""The end of a sweep: its runs beside each other on one page, and below one parent in MLflow."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from esper.configs import TrackingConfig
from esper.errors import EsperError
from esper.launch.exits import line_of
from esper.tracking.mlflow_sweep import report_sweep
from esper.tracking.sync import sync
from esper.tracking.tracker_thread import short_message

__all__ = ["gather"]


def gather(sweep_dir: Path, members: Mapping[str, TrackingConfig]) -> None:
    """Write the comparison of a sweep's runs and print its table; then tell MLflow what belongs together.

    What cannot be done is one line: the runs themselves are done.

    Args:
        sweep_dir: the folder that the runs' folders are in.
        members: where each was to be reported, by the run's name.
    """
    begun = {name: sweep_dir / name for name in members if (sweep_dir / name / "journal.jsonl").is_file()}
    reported = [run_dir for name, run_dir in begun.items() if members[name].name in ("mlflow", "both")]
    for run_dir in reported:
        if not (run_dir / "mlflow.json").is_file():  # where it ran, there was only the journal
            sync(run_dir)
    if len(begun) < 2:
        return
    try:
        _compare(sweep_dir, list(begun.values()))
    except EsperError as error:
        sys.stdout.write(f"\nno comparison: {line_of(error)}\n")
    try:
        report_sweep(sweep_dir, reported)
    except Exception as error:  # whatever MLflow, and what lies under it, may raise
        sys.stdout.write(f"no parent in MLflow ({short_message(error)}); esper sync {sweep_dir} catches up\n")


def _compare(sweep_dir: Path, run_dirs: list[Path]) -> None:
    from esper.report import comparison, runs  # Matplotlib and SciPy are only needed now

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
