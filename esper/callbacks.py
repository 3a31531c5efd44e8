"""Hydra callbacks: refuse bad input before Hydra has made a single folder."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from esper.configs import TolariaConfig, TrackingConfig
from esper.configs.explain import explain
from esper.configs.identity import run_name
from esper.configs.load import from_hydra
from esper.configs.place import place
from esper.errors import ConfigError, EsperError
from esper.launch.exits import exit_with, line_of
from esper.sweep.compose import compose_member, member_of
from esper.sweep.dry_run import rehearse_sweep
from esper.sweep.launch import Queue, queue_of
from esper.sweep.manifest import Member
from esper.tracking.files import write_members

__all__ = ["CheckBeforeRun"]


class CheckBeforeRun(Callback):
    """Check the run, or every member of a sweep, before anything is written; then give a dry run a folder that goes.

    Source: Hydra makes the run folder before it calls the app, and only warns when a callback raises.
    """

    def __init__(self) -> None:
        self._members: dict[str, TrackingConfig] = {}

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Check a single run."""
        try:
            launcher = config.hydra.runtime.choices["hydra/launcher"]
            if launcher != "basic":
                raise ConfigError(
                    f"hydra/launcher={launcher}: launches with -m only; without it the run would be local"
                )
            member = from_hydra(config)
            if member.comparison.arm is None and "arm" in (config.hydra.sweeper.get("params") or {}):
                raise ConfigError("arm=null: a comparison trains several runs; add -m, or give one, such as arm=grown")
            _check_device(member)
            if member.dry_run:
                _set(config, "hydra.run.dir", _folder_that_goes())
        except EsperError as error:
            exit_with(error)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Check every member of a sweep."""
        try:
            launcher = config.hydra.runtime.choices["hydra/launcher"]
            if launcher.startswith("submitit_"):  # Hydra's own: they compose again inside the job, and cannot resume
                raise ConfigError(f"hydra/launcher={launcher}: use {launcher.removeprefix('submitit_')}")
            queue = queue_of(launcher, _options(config)) if launcher in ("slurm", "local") else None
            asked = _expand(config)
            members = [compose_member(config, overrides) for overrides in asked]
            dry = {member.dry_run for member in members}
            if len(dry) > 1:
                raise ConfigError("dry_run=true,false: a sweep is dry or it is not; give one value")
            if queue is not None and True not in dry:
                queue.require()
            if launcher in ("basic", "local"):
                for member in members:
                    _check_device(member)
            if queue is not None and True in dry:
                _rehearse([member_of(config, overrides) for overrides in asked], queue)
            if True in dry:
                folder = _folder_that_goes()
                _set(config, "hydra.sweep.dir", folder)
                # Members are composed anew, from these.
                _set(config, "hydra.overrides.hydra", [*config.hydra.overrides.hydra, f"hydra.sweep.dir='{folder}'"])
            elif members:
                named = {run_name(member, one): list(one) for member, one in zip(members, asked, strict=True)}
                self._members = dict(zip(named, (member.tracking for member in members), strict=True))
                write_members(Path(config.hydra.sweep.dir), named)
        except EsperError as error:
            exit_with(error)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Bring the runs together."""
        if self._members:
            from esper.sweep.summary import gather  # what it takes is only needed after a sweep

            gather(Path(config.hydra.sweep.dir), self._members)


def _options(config: DictConfig) -> dict[str, Any]:
    """The launcher's options."""
    return {key: value for key, value in config.hydra.launcher.items() if key != "_target_"}


def _rehearse(members: Sequence[tuple[Member, TolariaConfig]], queue: Queue) -> NoReturn:
    """Rehearse a sweep of jobs and leave: from here on Hydra would write into its folder."""
    try:
        rehearse_sweep(members, queue)
    except EsperError:
        raise
    except Exception as error:  # Hydra would only warn, and go on
        raise EsperError(line_of(error)) from error
    raise SystemExit(0)


def _expand(config: DictConfig) -> Sequence[Sequence[str]]:
    """The overrides of each member, as Hydra's basic sweeper makes them; none when only another sweeper knows them."""
    if config.hydra.runtime.choices["hydra/sweeper"] != "basic":
        return []
    # It imports half of Hydra's plug-ins; only sweeps need it.
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    try:
        overrides = parser.parse_overrides([*params, *config.hydra.overrides.task])
        return [member for batch in BasicSweeper.split_arguments(overrides, None) for member in batch]
    except HydraException as error:
        raise explain(error) from None


def _check_device(config: TolariaConfig) -> None:
    """Ask torch for a device that was named; jobs elsewhere find other devices, so only runs of this process."""
    if config.device == "cuda" and place().size == 1:  # several processes tell each other
        from esper.build import select_device

        select_device(config.device)


def _folder_that_goes() -> str:
    folder = tempfile.mkdtemp(prefix="esper-dry-run-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _set(config: DictConfig, key: str, value: Any) -> None:
    with open_dict(config.hydra):
        OmegaConf.update(config, key, value)
