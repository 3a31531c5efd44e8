"""Hydra callback: refuse bad input before Hydra makes a single folder."""

from __future__ import annotations

import atexit
import contextlib
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from esper import stopping
from esper.configs import TolariaConfig, TrackingConfig
from esper.configs.compose import BAD_INPUT
from esper.configs.explain import explain, explain_folder
from esper.configs.identity import digest_of
from esper.configs.load import from_hydra
from esper.configs.rank_env import rank_env
from esper.configs.text import quote_text
from esper.errors import ConfigError, EsperError
from esper.folders import also_restore
from esper.launch.exits import error_line, exit_with, print_traceback
from esper.sweep.compose import compose_member, compose_runs, named, run_folder
from esper.sweep.dry_run import dry_run_sweep
from esper.sweep.launchers import QUEUES, queue_of
from esper.sweep.manifest import Member
from esper.sweep.queues.base import Queue
from esper.tracking.files import MEMBERS_FILES, write_members

__all__ = ["CheckBeforeRun", "exit_on_error"]

_RUN_NAME = "${esper.run_name:}"
"""`hydra.sweep.subdir` of conf/config.yaml."""


@contextlib.contextmanager
def exit_on_error() -> Iterator[None]:
    """Exit with an error, of which Hydra would only warn before it goes on."""
    try:
        yield
    except EsperError as error:
        exit_with(error)
    except BAD_INPUT as error:
        stopping.check()  # a signal may have left OmegaConf half set up
        exit_with(explain(error))
    except Exception as error:
        stopping.check()
        if isinstance(error, OSError) and error.filename:
            exit_with(explain_folder(error))
        print_traceback()
        exit_with(EsperError(error_line(error)))


class CheckBeforeRun(Callback):
    """Checks a run, or every member of a sweep, before anything is written; gives a dry run a temporary folder.

    Source: Hydra makes the run folder before it calls the app, and only warns when a callback raises.
    """

    def __init__(self) -> None:
        self._tracking: dict[str, TrackingConfig] = {}  # of the members of a sweep, by name

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Check a single run."""
        with exit_on_error():
            launcher = config.hydra.runtime.choices["hydra/launcher"]
            if launcher != "basic":
                raise ConfigError(f"hydra/launcher={launcher}: launches sweeps only; add -m")
            run_config = from_hydra(config)
            if run_config.comparison.arm is None and "arm" in (config.hydra.sweeper.get("params") or {}):
                raise ConfigError("arm=null: a comparison is a sweep; add -m, or choose one arm, such as arm=grown")
            _check_device(run_config)
            _require_folder("hydra.run.dir", config.hydra.run.dir)
            here = Path(config.hydra.runtime.cwd)
            if run_config.fresh and here.is_relative_to((here / config.hydra.run.dir).resolve()):
                raise ConfigError(
                    f"hydra.run.dir={config.hydra.run.dir}: fresh=true would move all that it holds aside, and the "
                    "command was started in it; name another folder"
                )
            if run_config.dry_run:
                _set(config, "hydra.run.dir", _temporary_run_dir())

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Check every member of a sweep."""
        with exit_on_error():
            launcher = config.hydra.runtime.choices["hydra/launcher"]
            if launcher.startswith("submitit_"):  # Hydra's: they compose again inside the job, and cannot resume
                raise ConfigError(f"hydra/launcher={launcher}: use {launcher.removeprefix('submitit_')}")
            queue = queue_of(launcher, config.hydra.launcher) if launcher in QUEUES else None
            subdir = _raw(config.hydra.sweep)["subdir"]
            _require_folder("hydra.sweep.dir", config.hydra.sweep.dir)
            if queue is not None and subdir != _RUN_NAME:
                raise ConfigError(
                    f"hydra.sweep.subdir={subdir}: hydra/launcher={launcher} names the run folders itself; leave it "
                    "out, and give the sweep's folder in hydra.sweep.dir"
                )
            overrides = _expand(config)
            runs = compose_runs(config, overrides)
            names, configs = [name for name, _ in runs], [member for _, member in runs]
            if queue is None and subdir != _RUN_NAME:
                names = [run_folder(config, member, number=number) for number, member in enumerate(overrides)]
            _check_registries(configs)
            is_dry = {member.dry_run for member in configs}
            if len(is_dry) > 1:
                raise ConfigError("dry_run=true,false: applies to the whole sweep; give one value")
            if queue is not None:
                for member in configs:
                    _require_no_index(member, launcher)
            if queue is not None and True not in is_dry:
                queue.require(configs)
                sweep_dir = Path(config.hydra.sweep.dir)
                also_restore(sweep_dir / name for name in ("multirun.yaml", *MEMBERS_FILES))
            if launcher == "basic" or (queue is not None and queue.runs_here):
                for member in configs:
                    _check_device(member)
            run_dirs = [Path(config.hydra.sweep.dir) / name for name in names]
            _check_networks(configs, run_dirs, overrides, has_jobs=queue is not None)
            if queue is not None and True in is_dry:
                _dry_run_and_exit([compose_member(config, member) for member in overrides], queue)
            if True in is_dry:
                folder = _temporary_run_dir()
                _set(config, "hydra.sweep.dir", folder)
                # Hydra composes each member again, from these overrides.
                _set(
                    config,
                    "hydra.overrides.hydra",
                    [*_raw(config.hydra.overrides.hydra), f"hydra.sweep.dir='{folder}'"],
                )
            elif configs:
                if queue is not None:
                    _require_distinct(names, overrides)
                elif subdir == _RUN_NAME:
                    folders = [f"{member.experiment_name}/{name}" for member, name in zip(configs, names, strict=True)]
                    _require_distinct(folders, overrides)
                self._tracking = dict(zip(names, (member.tracking for member in configs), strict=True))
                write_members(Path(config.hydra.sweep.dir), dict(zip(names, map(list, overrides), strict=True)))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Summarize the sweep."""
        if self._tracking:
            from esper.sweep.summary import summarize  # imports MLflow, which is only needed after a sweep

            with exit_on_error():
                summarize(Path(config.hydra.sweep.dir), self._tracking)


def _dry_run_and_exit(members: Sequence[tuple[Member, TolariaConfig]], queue: Queue) -> NoReturn:
    """Dry-run a sweep and exit, because Hydra would make the sweep's folder next."""
    try:
        dry_run_sweep(members, queue)
    except EsperError:
        raise
    except Exception as error:  # Hydra would only warn, and launch the sweep
        raise EsperError(error_line(error)) from error
    raise SystemExit(0)


def _expand(config: DictConfig) -> Sequence[Sequence[str]]:
    """The overrides of each member, as Hydra's basic sweeper makes them; none for other sweepers, which search."""
    if config.hydra.runtime.choices["hydra/sweeper"] != "basic":
        return []
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # imports many of Hydra's plugins

    params = quote_text([f"{key}={value}" for key, value in (_raw(config.hydra.sweeper).get("params") or {}).items()])
    if params:  # Hydra's sweeper parses them again
        _set(config, "hydra.sweeper.params", dict(param.split("=", 1) for param in params))
    # Hydra would compose all members once more, before the first begins; here they are checked as well.
    BasicSweeper.validate_batch_is_legal = lambda *_: None  # type: ignore[method-assign]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    try:
        overrides = parser.parse_overrides([*params, *_raw(config.hydra.overrides.task)])
        return [member for batch in BasicSweeper.split_arguments(overrides, None) for member in batch]
    except HydraException as error:
        raise explain(error) from None


def _require_distinct(folders: Sequence[str], overrides: Sequence[Sequence[str]]) -> None:
    """Refuse members that train the same: they differ only in settings of other things, or in names of equal ones."""
    first: dict[tuple[str, str], tuple[str, Sequence[str]]] = {}
    for folder, given in zip(folders, overrides, strict=True):
        path = PurePosixPath(folder)
        same, other = first.setdefault((str(path.parent), digest_of(path.name)), (folder, given))
        if not (differing := sorted(set(other) ^ set(given))):
            continue
        if same == folder:
            raise ConfigError(
                f"{shlex.join(differing)}: would be one run, {folder}, since this does not change what is trained; "
                "leave it out of the sweep, or train them one by one, each with its own hydra.run.dir=FOLDER"
            )
        raise ConfigError(f"{shlex.join(differing)}: would train the same twice, as the settings are equal; give one")


def _raw(node: Any) -> Any:
    """A node's content with its interpolations, of which the values may be secrets, as they were written."""
    return OmegaConf.to_container(node, resolve=False)


def _require_folder(key: str, folder: str) -> None:
    """Refuse an empty name, as of a shell's variable that is not set, which would be the folder of the command."""
    if not folder.strip():
        raise ConfigError(f"{key}={folder!r}: names no folder; {key}=. is the folder of the command")


def _check_device(config: TolariaConfig) -> None:
    """Check that this machine has the device of a run that trains here; with several ranks, `Ranks` checks."""
    if config.device not in ("auto", "cpu") and rank_env().size == 1:
        from esper.devices import select_device

        select_device(config.device)


def _check_networks(
    configs: Sequence[TolariaConfig], run_dirs: Sequence[Path], overrides: Sequence[Sequence[str]], *, has_jobs: bool
) -> None:
    """Check what the networks tell without data, before the first member trains; see `check_network`."""
    first: dict[str, int] = {}
    for number, member in enumerate(configs):
        data, recipe = member.dataset, member.optimization
        asked = (member.model, member.morphogenetic.enable_tamiyo, recipe.optimizer, recipe.optimizer_options)
        first.setdefault(repr((*asked, data.name, data.image_size, data.context)), number)
    if len(first) == 1 and not has_jobs:
        return  # the first run tells at once
    for number in first.values():
        from esper.launch.early import check_network  # imports torch

        try:
            check_network(configs[number], run_dir=run_dirs[number], earlier=() if has_jobs else run_dirs[:number])
        except ConfigError as error:
            raise (named(error, overrides[number], overrides) if len(first) > 1 else error) from None


def _require_no_index(config: TolariaConfig, launcher: str) -> None:
    """Refuse a GPU by number where the launcher assigns GPUs: a run sees its own as cuda:0."""
    if config.device.startswith("cuda:"):
        raise ConfigError(
            f"device={config.device}: hydra/launcher={launcher} assigns GPUs to runs; use device=cuda, and choose "
            "the GPUs with CUDA_VISIBLE_DEVICES"
        )


def _check_registries(configs: Sequence[TolariaConfig]) -> None:
    """Check that the runs can be registered, where that is asked for."""
    asked = {(tracking.register, tracking.uri): tracking for tracking in (member.tracking for member in configs)}
    for (name, _), tracking in asked.items():
        if name is not None:
            from esper.launch.registration import require_registry  # imports more than a launch needs

            require_registry(tracking)


def _temporary_run_dir() -> str:
    """A folder that is removed at exit."""
    folder = tempfile.mkdtemp(prefix="esper-dry-run-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _set(config: DictConfig, key: str, value: Any) -> None:
    with open_dict(config.hydra):
        OmegaConf.update(config, key, value)
