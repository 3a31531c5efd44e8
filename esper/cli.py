"""`esper`: what there is to do besides training. Each subcommand imports its part only when it is called."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esper import __version__
from esper.errors import EsperError
from esper.launch.exits import exit_with

if TYPE_CHECKING:
    from esper.tracking import Target
    from esper.tracking.trackers import Reported

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

    doctor = commands.add_parser("doctor", help="is everything here that a run needs? Each problem with its remedy")
    doctor.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="as for esper-train, e.g. bus=redis")
    doctor.add_argument("--json", action="store_true", help="for programs")
    doctor.set_defaults(run=_doctor)

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

    _add_urza(commands.add_parser("urza", help="the blueprint library: list, show, import, export, characterise"))

    _add_services(commands.add_parser("services", help="what many runs share: Tamiyo and the forge on a bus"))

    version = commands.add_parser("version", help="print Esper's version")
    version.set_defaults(run=_version)
    return parser


def _add_urza(urza: argparse.ArgumentParser) -> None:
    actions = urza.add_subparsers(metavar="ACTION", required=True)

    def action(name: str, run: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        parser = actions.add_parser(name, help=help)
        parser.add_argument("--database", metavar="URL", help="as database.url (default: outputs/urza.db)")
        parser.set_defaults(run=run)
        return parser

    listing = action("list", _urza_list, "what may grow, built in or declared, and what is known of it")
    listing.add_argument("--json", action="store_true", help="for programs")
    show = action("show", _urza_show, "all that is known of one blueprint")
    show.add_argument("name", metavar="NAME")
    show.add_argument("--json", action="store_true", help="for programs")
    export = action("export", _urza_export, "write a declared blueprint's definition")
    export.add_argument("name", metavar="NAME")
    export.add_argument("--out", type=Path, metavar="FILE", help="a new file (default: standard output)")
    add = action("import", _urza_import, "bring definitions into the library")
    add.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a definition in JSON")
    record = action("record", _urza_record, "tell the library what the modules of finished runs gained")
    record.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR", help="folder of a run")
    measure = action("characterise", _urza_characterise, "build, check, measure and compile in a process of its own")
    measure.add_argument("names", nargs="+", metavar="NAME", help="blueprint, built in or declared")
    measure.add_argument(
        "--site", action="append", default=[], metavar="CxHxW[:CxHxW]", help="shape (default: ResNet-18's on 32x32)"
    )
    measure.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    measure.add_argument("--batch-size", type=_positive, default=128, metavar="N")
    measure.add_argument("--timeout", type=_positive, default=300, metavar="SECONDS", help="most for one site")
    measure.add_argument("--memory", type=_positive, default=8192, metavar="MIB", help="most for the process")
    measure.add_argument("--compile-cache", metavar="FOLDER", help="as storage.compile_cache_dir")
    measure.add_argument("--no-compile", action="store_true", help="do not measure it compiled")
    measure.add_argument("--again", action="store_true", help="also what is known or quarantined")
    submit = action("submit", _urza_submit, "have the forges on the bus characterise them")
    submit.add_argument("names", nargs="+", metavar="NAME", help="blueprint, built in or declared")
    submit.add_argument("--redis", metavar="URL", help="as redis.url (default: ESPER_REDIS_URL, or this machine's)")


def _add_services(services: argparse.ArgumentParser) -> None:
    actions = services.add_subparsers(metavar="ACTION", required=True)

    def action(name: str, run: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        parser = actions.add_parser(name, help=help)
        parser.set_defaults(run=run)
        return parser

    def overrides(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="as of esper-train, e.g. redis.url=…")

    def only(parser: argparse.ArgumentParser) -> None:
        names = ("tamiyo", "tezzeret")
        parser.add_argument("--only", action="append", default=[], choices=names, help="this one (default: both)")

    up = action("up", _services_up, "run them until Ctrl-C or SIGTERM")
    overrides(up)
    only(up)
    up.add_argument("--detach", action="store_true", help="in the background, until `esper services down`")
    up.add_argument("--name", help="among those that share the work (default: this machine's)")
    up.add_argument("--policy", type=Path, metavar="FILE", help="what runs with morphogenetic.policy=learned are told")
    down = action("down", _services_down, "stop those that were started in this folder")
    down.add_argument("--name", help="only those of this name")
    status = action("status", _services_status, "who is alive on the bus")
    overrides(status)
    check = action("check", _services_check, "ask each of them; exit code 1 if one does not answer")
    overrides(check)
    only(check)
    for parser in (status, check):
        parser.add_argument("--json", action="store_true", help="for programs")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: allowed is at least 1")
    return value


def _doctor(options: argparse.Namespace) -> int:
    from esper.doctor import command

    return command.main(options.overrides, as_json=options.json)


def _sync(options: argparse.Namespace) -> int:
    from esper.tracking import sync

    return sync.main(options.run_dirs, options.uri, also=_buses)


def _buses(config: Mapping[str, Any], run_dir: Path) -> Iterable[Target[Reported]]:
    """The bus that a run was published on, if there was one."""
    if config.get("bus") == "redis":
        from esper.configs import RedisConfig
        from esper.tolaria.publish import on_bus

        known = {name: value for name, value in config["redis"].items() if name in RedisConfig.__dataclass_fields__}
        yield on_bus(RedisConfig(**known), run_dir=run_dir)


def _report(options: argparse.Namespace) -> int:
    from esper.report import command

    given = {name: getattr(options, name) for name in ("out", "baseline", "target", "mlflow", "uri")}
    return command.main(options.paths, **given)


def _sweep_status(options: argparse.Namespace) -> int:
    from esper.sweep import status

    return status.main(options.sweep_dir, watch=options.watch)


def _sweep_resume(options: argparse.Namespace) -> int:
    from esper.sweep import launch as sweep

    return sweep.resume(options.sweep_dir)


def _simic(options: argparse.Namespace) -> int:
    from esper.simic import fit

    return fit.main(options.run_dirs, options.out)


def _export(options: argparse.Namespace) -> int:
    from esper.tolaria.checkpoints.export import export

    sys.stdout.write(f"{export(options.run_dir, options.out, best=options.best)}\n")
    return 0


def _urza_list(options: argparse.Namespace) -> int:
    from esper.urza import command

    return command.listing(options.database, as_json=options.json)


def _urza_show(options: argparse.Namespace) -> int:
    from esper.urza import command

    return command.show(options.name, options.database, as_json=options.json)


def _urza_export(options: argparse.Namespace) -> int:
    from esper.urza import command

    return command.export(options.name, options.database, options.out)


def _urza_import(options: argparse.Namespace) -> int:
    from esper.urza import command

    return command.add(options.files, options.database)


def _urza_record(options: argparse.Namespace) -> int:
    from esper.urza import command

    return command.record(options.run_dirs, options.database)


def _urza_characterise(options: argparse.Namespace) -> int:
    from esper.configs import StorageConfig
    from esper.tezzeret import command
    from esper.tezzeret.characterise import Limits

    return command.main(
        options.names,
        url=options.database,
        sites=options.site,
        device=options.device,
        batch_size=options.batch_size,
        compile=not options.no_compile,
        again=options.again,
        limits=Limits(timeout_s=options.timeout, memory_bytes=options.memory * 2**20),
        storage=StorageConfig(compile_cache_dir=options.compile_cache),
    )


def _urza_submit(options: argparse.Namespace) -> int:
    from esper.configs import RedisConfig
    from esper.tezzeret import command

    return command.submit(options.names, url=options.database, redis=RedisConfig(url=options.redis))


def _services_up(options: argparse.Namespace) -> int:
    settings = {"only": options.only, "name": options.name, "policy": options.policy}
    if options.detach:
        from esper.services import control as services

        return services.start(options.overrides, **settings)
    from esper.services import up as services_up

    return services_up.up(options.overrides, **settings)


def _services_down(options: argparse.Namespace) -> int:
    from esper.services import control as services

    return services.down(options.name)


def _services_status(options: argparse.Namespace) -> int:
    from esper.services import control as services

    return services.status(options.overrides, as_json=options.json)


def _services_check(options: argparse.Namespace) -> int:
    from esper.services import check as services_check

    return services_check.check(options.overrides, only=options.only, as_json=options.json)


def _version(_: argparse.Namespace) -> int:
    sys.stdout.write(f"esper {__version__}\n")
    return 0
