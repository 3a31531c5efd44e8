"""`esper report`: the page of one run, or the comparison of several."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from esper.errors import RunError
from esper.report import comparison, run_page, runs

__all__ = ["main"]


def main(
    paths: Sequence[Path],
    *,
    out: Path | None = None,
    baseline: str | None = None,
    target: float | None = None,
    mlflow: str | None = None,
    uri: str | None = None,
) -> int:
    """Write `report.html` for the folder of one run alone; for anything else compare, and print the table.

    Args:
        paths: folders of runs, or folders with runs somewhere below them.
        out: the comparison's page; None is `comparison.html` in the folder that all paths have in common.
        baseline: label of the arm that the others are compared with.
        target: validation accuracy in (0, 1] to be reached.
        mlflow: experiment to compare instead of folders.
        uri: where MLflow is.

    Raises:
        RunError: there is nothing to report, or the runs cannot be compared.
    """
    if bool(paths) == (mlflow is not None):
        raise RunError("esper report: give folders of runs, or --mlflow EXPERIMENT; one of the two")
    if uri is not None and mlflow is None:
        raise RunError(f"--uri {uri}: goes with --mlflow EXPERIMENT, folders need none; give that or leave it out")
    if target is not None and not 0 < target <= 1:
        raise RunError(f"--target {target:g}: an accuracy lies above 0 and is at most 1; for 90 % say 0.9")
    if out is not None and out.suffix != ".html":
        raise RunError(f"--out {out}: the page is an .html file, and the figures go beside it as .json; name one")
    is_compared = any(option is not None for option in (out, baseline, target))
    if len(paths) == 1 and (paths[0] / "journal.jsonl").is_file() and not is_compared:
        sys.stdout.write(f"{run_page.write(paths[0])}\n")
        return 0
    found = runs.from_folders(paths) if mlflow is None else runs.from_mlflow(mlflow, uri=uri)
    report = comparison.compare(found, baseline=baseline, target=target)
    if out is None:
        common = Path(os.path.commonpath([path.absolute() for path in paths])) if paths else Path()
        out = common / "comparison.html"
    comparison.write(report, out)
    console = Console()
    for part in comparison.printed(report):
        console.print(part)
    sys.stdout.write(f"\n{out}\n")
    return 0
