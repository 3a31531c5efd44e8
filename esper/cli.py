"""The `esper` command. Each subcommand imports its dependencies when it is called, so `--help` is quick."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esper import __version__
from esper.commands import Parser
from esper.commands import add_command as _add
from esper.commands import add_device as _add_device
from esper.commands import add_group as _add_group
from esper.commands import add_json as _add_json
from esper.commands import positive as _positive
from esper.completion import add_completion
from esper.errors import EsperError, RunError
from esper.inference.parser import add_use
from esper.launch.exits import exit_with
from esper.launch.output import is_written, keep_writing
from esper.openmp import sleep_while_waiting
from esper.planning.parser import add_plan
from esper.reference.command import add_help
from esper.runs.parser import add_runs, with_default
from esper.services import SERVICES

if TYPE_CHECKING:
    from esper.tracking import Tracker

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a subcommand; raises `SystemExit` with its exit code."""
    keep_writing()
    sleep_while_waiting()
    options = _parser().parse_args(with_default(sys.argv[1:] if arguments is None else arguments))
    try:
        code = options.run(options)
        raise SystemExit(code if is_written() else code or 1)
    except EsperError as error:
        exit_with(error)
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="esper",
        description="Inspect, compare and export runs of esper-train; manage sweeps, services and blueprints.",
    )
    parser.add_argument("--version", action="version", version=f"esper {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    doctor = _add(commands, "doctor", _doctor, "check that everything a run needs is installed and reachable")
    doctor.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="as for esper-train, e.g. bus=redis")
    _add_json(doctor)

    add_plan(commands)
    sync = _add(commands, "sync", _sync, "upload runs to their trackers from their journals")
    sync.add_argument("run_dirs", nargs="+", type=Path, metavar="DIR", help="folder of a run or a sweep")
    sync.add_argument("--uri", help="MLflow tracking URI (default: the run's own trackers)")
    sync.add_argument("--redis", metavar="URL", help="server of runs with bus=redis (default: the run's own)")

    report = _add(commands, "report", _report, "write the report of a run, or compare runs")
    report.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="folder of a run, or of runs to compare")
    report.add_argument("--out", type=Path, metavar="FILE", help="file of a comparison (default: comparison.html)")
    report.add_argument("--baseline", metavar="LABEL", help="arm to compare the others with")
    report.add_argument(
        "--target", type=float, metavar="VALUE", help="validation accuracy (or what else leads) to reach, e.g. 0.9"
    )
    report.add_argument("--mlflow", metavar="EXPERIMENT", help="compare the runs of an MLflow experiment")
    report.add_argument("--uri", help="MLflow tracking URI (default: outputs/mlflow.db)")
    report.add_argument("--open", action="store_true", help="open the page in a browser")

    add_runs(commands)
    watch = _add(commands, "watch", _watch, "show running experiments on a page in the browser, until Ctrl-C")
    watch.add_argument(
        "folder", nargs="?", type=Path, default=Path("outputs"), metavar="FOLDER", help="(default: outputs)"
    )
    watch.add_argument(
        "--port", type=_port, default=0, metavar="N", help="port of this machine (default: any free one)"
    )

    sweep = _add_group(commands, "sweep", "show the status of a sweep, or resume it")
    status = _add(sweep, "status", _sweep_status, "show state, epoch, leading metric and remaining time of every run")
    status.add_argument("sweep_dir", type=Path, metavar="DIR", help="folder of the sweep, e.g. outputs/my_experiment")
    status.add_argument("--watch", action="store_true", help="refresh until every job has ended")
    resume = _add(sweep, "resume", _sweep_resume, "resubmit the runs that are missing, failed or interrupted")
    resume.add_argument("sweep_dir", type=Path, metavar="DIR", help="folder of the sweep")

    simic = _add(commands, "simic", _simic, "train a policy on recorded runs: Tamiyo's, or one for esper plan")
    simic.add_argument(
        "run_dirs", nargs="+", type=Path, metavar="DIR", help="folder of a run; or of a plan and what was trained since"
    )
    simic.add_argument(
        "--out", type=Path, required=True, metavar="FILE",
        help="policy file: policy.safetensors from runs, FILE.json from folders of plans",
    )  # fmt: skip

    add_use(commands)
    _add_urza(_add_group(commands, "urza", "manage the blueprint library"))
    _add_services(_add_group(commands, "services", "run Tamiyo and Tezzeret as services for many runs"))
    add_help(commands)
    add_completion(commands, parser)
    _add(commands, "version", _version, "print the version")
    return parser


def _add_urza(commands: Any) -> None:
    listing = _add(commands, "list", _urza_list, "list all blueprints, with their measured cost and gains")
    show = _add(commands, "show", _urza_show, "show one blueprint with its kernels and records")
    show.add_argument("name", metavar="NAME")
    export = _add(commands, "export", _urza_export, "write the definition of a declared blueprint as JSON")
    export.add_argument("name", metavar="NAME")
    export.add_argument("--out", type=Path, metavar="FILE", help="a new file (default: standard output)")
    add = _add(commands, "import", _urza_import, "add blueprint definitions to the library")
    add.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a definition in JSON")
    record = _add(commands, "record", _urza_record, "record the gains of blueprints in finished runs")
    record.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR", help="folder of a run")
    measure = _add(
        commands, "characterise", _urza_characterise, "build, check, compile and measure blueprints in a worker process"
    )
    measure.add_argument("names", nargs="+", metavar="NAME", help="a built-in or declared blueprint")
    measure.add_argument(
        "--site", action="append", default=[], metavar="SHAPE[:SHAPE]",
        help="input (and output) shape, such as 64x32x32, 65x192 or 192; repeatable (default: those of ResNet-18 and "
        "model=vit on 32x32 images, and 256)",
    )  # fmt: skip
    _add_device(measure)
    measure.add_argument("--batch-size", type=_positive, default=128, metavar="N", help="batch size (default: 128)")
    measure.add_argument(
        "--timeout", type=_positive, default=300, metavar="SECONDS", help="time limit of one site (default: 300)"
    )
    measure.add_argument(
        "--memory", type=_positive, default=8192, metavar="MIB", help="memory limit of the worker (default: 8192 MiB)"
    )
    measure.add_argument("--compile-cache", metavar="DIR", help="as storage.compile_cache_dir")
    measure.add_argument("--no-compile", action="store_true", help="skip the compiled measurement")
    measure.add_argument("--again", action="store_true", help="repeat known and quarantined measurements")
    submit = _add(commands, "submit", _urza_submit, "submit blueprints to the Tezzeret services on the bus")
    submit.add_argument("names", nargs="+", metavar="NAME", help="a built-in or declared blueprint")
    submit.add_argument("--redis", metavar="URL", help="as redis.url (default: ESPER_REDIS_URL, or this machine)")
    for parser in (listing, show):
        _add_json(parser)
    for parser in (listing, show, export, add, record, measure, submit):
        parser.add_argument("--database", metavar="URL", help="as database.url (default: outputs/urza.db)")


def _add_services(commands: Any) -> None:
    up = _add(commands, "up", _services_up, "run services until Ctrl-C or SIGTERM")
    up.add_argument("--detach", action="store_true", help="run in the background, until `esper services down`")
    up.add_argument("--name", help="name of this process among those that share the work (default: the host name)")
    up.add_argument("--policy", type=Path, metavar="FILE", help="policy of runs with morphogenetic.policy=learned")
    down = _add(commands, "down", _services_down, "stop services that were started in this folder")
    down.add_argument("--name", help="only those of this name (default: all)")
    status = _add(commands, "status", _services_status, "list the services on the bus")
    check = _add(commands, "check", _services_check, "test that every service responds; exit code 1 if one does not")
    for parser in (up, status, check):
        parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="as for esper-train, e.g. redis.url=URL")
    for parser in (up, check):
        parser.add_argument("--only", action="append", default=[], choices=SERVICES, help="this service (default: all)")
    for parser in (status, check):
        _add_json(parser)


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**16:
        raise argparse.ArgumentTypeError(f"{text}: allowed is 0 to 65535")
    return value


def _doctor(options: argparse.Namespace) -> int:
    from esper.doctor import command

    return command.main(options.overrides, as_json=options.json)


def _sync(options: argparse.Namespace) -> int:
    from esper.tracking import sync

    return sync.main(options.run_dirs, options.uri, extra_trackers=functools.partial(_buses, url=options.redis))


def _buses(config: Mapping[str, Any], run_dir: Path, *, url: str | None) -> Iterable[Tracker]:
    """The bus of a run with `bus=redis`, at this URL or the recorded one."""
    if config.get("bus") == "redis":
        from esper.build import bus_tracker
        from esper.configs import RedisConfig
        from esper.tracking.addresses import own_address, remember_address

        settings = {name: value for name, value in config["redis"].items() if name in RedisConfig.__dataclass_fields__}
        remember_address(url)
        if url is None and settings["url"] != "embedded":
            own = {"key": "redis.url", "option": "--redis", "variable": "ESPER_REDIS_URL"}
            url = own_address(settings["url"], **own, run_dir=run_dir)
        yield bus_tracker(RedisConfig(**{**settings, "url": url or settings["url"]}), run_dir=run_dir)


def _report(options: argparse.Namespace) -> int:
    from esper.report import command

    given = {name: getattr(options, name) for name in ("out", "baseline", "target", "mlflow", "uri")}
    return command.main(options.paths, **given, opens=options.open)


def _watch(options: argparse.Namespace) -> int:
    from esper.watch import command

    return command.main(options.folder, port=options.port)


def _sweep_status(options: argparse.Namespace) -> int:
    from esper.sweep import status

    return status.main(options.sweep_dir, watch=options.watch)


def _sweep_resume(options: argparse.Namespace) -> int:
    from esper.sweep import launch as sweep

    return sweep.resume(options.sweep_dir)


def _simic(options: argparse.Namespace) -> int:
    from esper.files import require_writable

    if options.out.suffix not in (".safetensors", ".json"):
        raise RunError(
            f"--out {options.out}: must be a .safetensors file, a policy from runs, or a .json file, one from folders "
            "of plans"
        )
    require_writable(options.out)
    if options.out.suffix == ".json":
        from esper.planning import outcomes

        return outcomes.learn(options.run_dirs, options.out)
    from esper.simic import fit

    return fit.main(options.run_dirs, options.out)


def _urza_list(options: argparse.Namespace) -> int:
    from esper.urza import command

    return command.list_blueprints(options.database, as_json=options.json)


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

    return command.characterise_blueprints(
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
        from esper.services.daemon import start

        return start(options.overrides, **settings)
    from esper.services.up import up

    return up(options.overrides, **settings)


def _services_down(options: argparse.Namespace) -> int:
    from esper.services.daemon import down

    return down(options.name)


def _services_status(options: argparse.Namespace) -> int:
    from esper.services.status import status

    return status(options.overrides, as_json=options.json)


def _services_check(options: argparse.Namespace) -> int:
    from esper.services.check import check

    return check(options.overrides, only=options.only, as_json=options.json)


def _version(_: argparse.Namespace) -> int:
    sys.stdout.write(f"esper {__version__}\n")
    return 0
