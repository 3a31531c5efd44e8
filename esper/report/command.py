"""`esper report`: the page of one run, or the comparison of several."""

from __future__ import annotations

import os
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from esper.console import Console
from esper.errors import RunError
from esper.files import require_writable
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
    opens: bool = False,
) -> int:
    """Write `report.html` of a single run; otherwise compare runs: write the page and print the table.

    Args:
        paths: folders of runs, or folders that contain some at any depth.
        out: path of the comparison's page; None is `comparison.html` in the paths' common folder.
        baseline: label of the arm to compare the others with.
        target: value of the leading metric in validation, for the time to reach it; accuracies in (0, 1].
        mlflow: MLflow experiment to compare instead of folders.
        uri: MLflow tracking URI.
        opens: whether to open the page in a browser.

    Raises:
        RunError: there is nothing to report, or the runs cannot be compared.
    """
    if bool(paths) == (mlflow is not None):
        raise RunError("esper report: give either folders of runs or --mlflow EXPERIMENT")
    if uri is not None and mlflow is None:
        raise RunError(f"--uri {uri}: only used with --mlflow EXPERIMENT; add that or remove --uri")
    if out is not None and out.suffix != ".html":
        raise RunError(f"--out {out}: must be an .html file; its content is also written as .json beside it")
    if out is not None:
        for file in (out, out.with_suffix(".json")):
            require_writable(file)
    is_compared = any(option is not None for option in (out, baseline, target))
    if len(paths) == 1 and (paths[0] / "journal.jsonl").is_file() and not is_compared:
        page = run_page.write(paths[0])
        sys.stdout.write(f"{page}\n")
        return _open(page) if opens else 0
    compared = runs.from_folders(paths) if mlflow is None else runs.from_mlflow(mlflow, uri=uri)
    report = comparison.compare(compared, baseline=baseline, target=target)
    if out is None:
        common = Path(os.path.commonpath([path.absolute() for path in paths])) if paths else Path()
        out = common / "comparison.html"
    comparison.write(report, out)
    console = Console()
    for part in comparison.printed(report):
        console.print(part)
    sys.stdout.write(f"\n{out}\n")
    return _open(out) if opens else 0


def _open(page: Path) -> int:
    if not webbrowser.open(page.absolute().as_uri()):
        raise RunError("--open: there is no browser to open it in; set BROWSER, or open the file yourself")
    return 0
