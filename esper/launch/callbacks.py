"""Hydra callbacks: refuse bad input before Hydra has made a single folder."""

from __future__ import annotations

import atexit
import shutil
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from esper.configs import TolariaConfig
from esper.configs.explain import explain
from esper.configs.load import from_hydra
from esper.configs.place import place
from esper.errors import ConfigError, EsperError
from esper.launch.exits import exit_with

__all__ = ["CheckBeforeRun"]


class CheckBeforeRun(Callback):
    """Check the run, or every member of a sweep, before anything is written; then give a dry run a folder that goes.

    Source: Hydra makes the run folder before it calls the app, and only warns when a callback raises.
    """

    def __init__(self) -> None:
        self._compares = False

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
            members = _members(config)
            dry = {member.dry_run for member in members}
            if len(dry) > 1:
                raise ConfigError("dry_run=true,false: a sweep is dry or it is not; give one value")
            if config.hydra.runtime.choices["hydra/launcher"] == "basic":
                for member in members:
                    _check_device(member)
            if True in dry:
                folder = _folder_that_goes()
                _set(config, "hydra.sweep.dir", folder)
                # Members are composed anew, from these.
                _set(config, "hydra.overrides.hydra", [*config.hydra.overrides.hydra, f"hydra.sweep.dir='{folder}'"])
            self._compares = True not in dry and any(member.comparison.arm for member in members)
        except EsperError as error:
            exit_with(error)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Say how a comparison is read."""
        if self._compares:
            sys.stdout.write(f"\nThe comparison: esper report {config.hydra.sweep.dir}\n")


def _members(config: DictConfig) -> list[TolariaConfig]:
    """The configuration of every member, composed as the launcher will; none when only the sweeper knows them."""
    if config.hydra.runtime.choices["hydra/sweeper"] != "basic":
        return []
    loader = GlobalHydra.instance().config_loader()
    members = []
    for overrides in _expand(config):
        try:
            member = loader.load_sweep_config(config, list(overrides))
        except (HydraException, OmegaConfBaseException) as error:
            raise explain(error) from None
        members.append(from_hydra(member))
    return members


def _expand(config: DictConfig) -> Sequence[Sequence[str]]:
    """The overrides of each member, as Hydra's basic sweeper makes them."""
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
