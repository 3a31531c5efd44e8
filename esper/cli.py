"""`esper`: what there is to do besides training. Each subcommand imports its part only when it is called."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from esper import __version__
from esper.errors import EsperError
from esper.launch.exits import exit_with

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one subcommand; ends with `SystemExit`."""
    options = _parser().parse_args(arguments)
    try:
        raise SystemExit(options.run(options))
    except EsperError as error:
        exit_with(error)
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="esper", description="Work with runs of esper-train.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    sync = commands.add_parser("sync", help="report runs to their trackers from their journals")
    sync.add_argument("run_dirs", nargs="+", type=Path, metavar="DIR", help="folder of a run, or of a sweep's runs")
    sync.add_argument("--uri", help="MLflow tracking URI (default: the run's own trackers)")
    sync.set_defaults(run=_sync)

    report = commands.add_parser("report", help="write report.html of a run, or compare runs")
    report.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="folder of a run, or of runs to compare")
    report.add_argument("--out", type=Path, metavar="FILE", help="page of a comparison (default: comparison.html)")
    report.add_argument("--baseline", metavar="LABEL", help="arm that the others are compared with")
    report.add_argument("--target", type=float, metavar="ACCURACY", help="validation accuracy to reach, e.g. 0.9")
    report.add_argument("--mlflow", metavar="EXPERIMENT", help="compare the runs of an MLflow experiment")
    report.add_argument("--uri", help="MLflow tracking URI (default: outputs/mlflow.db)")
    report.set_defaults(run=_report)

    sweep = commands.add_parser("sweep", help="see how a launched sweep stands, or resume it")
    actions = sweep.add_subparsers(metavar="ACTION", required=True)
    status = actions.add_parser("status", help="state, epoch, accuracy and time left of every run")
    status.add_argument("sweep_dir", type=Path, metavar="DIR", help="folder of the sweep, e.g. outputs/my_experiment")
    status.add_argument("--watch", action="store_true", help="until every job has gone")
    status.set_defaults(run=_sweep_status)
    resume = actions.add_parser("resume", help="submit again what is missing, failed or was interrupted")
    resume.add_argument("sweep_dir", type=Path, metavar="DIR", help="folder of the sweep")
    resume.set_defaults(run=_sweep_resume)

    simic = commands.add_parser("simic", help="learn a Tamiyo policy from recorded runs")
    simic.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR", help="folder of a run")
    simic.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="the policy's file, e.g. policy.safetensors"
    )
    simic.set_defaults(run=_simic)

    export = commands.add_parser("export", help="write a run's network for use, what grew folded into its host")
    export.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="folder of the run")
    export.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a folder that is new or empty")
    export.add_argument("--best", action="store_true", help="the epoch with the lowest validation loss, not the last")
    export.set_defaults(run=_export)

    version = commands.add_parser("version", help="print Esper's version")
    version.set_defaults(run=_version)
    return parser


def _sync(options: argparse.Namespace) -> int:
    from esper.tracking import sync

    return sync.main(options.run_dirs, options.uri)


def _report(options: argparse.Namespace) -> int:
    from esper.report import command

    given = {name: getattr(options, name) for name in ("out", "baseline", "target", "mlflow", "uri")}
    return command.main(options.paths, **given)


def _sweep_status(options: argparse.Namespace) -> int:
    from esper.launch import status

    return status.main(options.sweep_dir, watch=options.watch)


def _sweep_resume(options: argparse.Namespace) -> int:
    from esper.launch import sweep

    return sweep.resume(options.sweep_dir)


def _simic(options: argparse.Namespace) -> int:
    from esper.simic import fit

    return fit.main(options.run_dirs, options.out)


def _export(options: argparse.Namespace) -> int:
    from esper.tolaria.export import export

    sys.stdout.write(f"{export(options.run_dir, options.out, best=options.best)}\n")
    return 0


def _version(_: argparse.Namespace) -> int:
    sys.stdout.write(f"esper {__version__}\n")
    return 0
