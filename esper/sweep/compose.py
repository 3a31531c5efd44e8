"""Compose the members of a sweep, each with its own configuration, from Hydra's configuration of the sweep."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from esper.configs import TolariaConfig
from esper.configs.comparison import ARMS
from esper.configs.explain import explain
from esper.configs.identity import run_name
from esper.configs.load import from_hydra
from esper.errors import ConfigError
from esper.sweep.manifest import Member

__all__ = ["compose_member", "compose_runs", "named", "run_folder"]

Run = tuple[str, TolariaConfig]

_composed: dict[tuple[int, tuple[str, ...]], tuple[DictConfig, Run]] = {}
"""By the identity of the sweep, which is kept beside the run, and the overrides: composing a run takes a while."""


def compose_runs(sweep: DictConfig, members: Sequence[Sequence[str]]) -> list[Run]:
    """The names and the configurations of all members' runs, composed as Hydra's launchers do.

    Args:
        sweep: Hydra's configuration of the sweep.
        members: the overrides of each.

    Raises:
        ConfigError: one cannot be used, which the message names.
    """
    runs = []
    for number, overrides in enumerate(members):
        try:
            runs.append(_compose_run(sweep, overrides))
        except ConfigError as error:
            if number == 0 and _problem(sweep, members[-1]) == str(error):
                raise  # of all members, it seems
            raise named(error, overrides, members) from None
    return runs


def named(error: ConfigError, overrides: Sequence[str], members: Sequence[Sequence[str]]) -> ConfigError:
    """The error of one of the members, named by those of its overrides that not all members have."""
    own = [override for override in overrides if any(override not in other for other in members)]
    is_named = len(own) == 1 and str(error).startswith(own[0].partition("=")[0] + "=")
    return error if not own or is_named else ConfigError(f"{shlex.join(own)}: {error}")


def _problem(sweep: DictConfig, overrides: Sequence[str]) -> str | None:
    """Why a run cannot be used."""
    try:
        _compose_run(sweep, overrides)
    except ConfigError as error:
        return str(error)
    return None


def _compose_run(sweep: DictConfig, overrides: Sequence[str]) -> Run:
    key = id(sweep), tuple(overrides)
    if key not in _composed:
        _composed[key] = sweep, _compose(sweep, overrides)
    return _composed[key][1]


def _compose(sweep: DictConfig, overrides: Sequence[str]) -> Run:
    try:
        cfg = GlobalHydra.instance().config_loader().load_sweep_config(sweep, list(overrides))
        config = from_hydra(cfg)
        return run_name(config, cfg.hydra.overrides.task), config  # the overrides as they are resolved
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error) from None


def run_folder(sweep: DictConfig, overrides: Sequence[str], *, number: int) -> str:
    """The folder, below the sweep's, that Hydra's basic launcher gives the run of this number.

    Raises:
        ConfigError: `hydra.sweep.subdir` cannot be resolved.
    """
    try:
        cfg = GlobalHydra.instance().config_loader().load_sweep_config(sweep, list(overrides))
        with open_dict(cfg):
            cfg.hydra.job.id, cfg.hydra.job.num = f"job_id_for_{number}", number
        return str(cfg.hydra.sweep.subdir)
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error) from None


def compose_member(sweep: DictConfig, overrides: Sequence[str]) -> tuple[Member, TolariaConfig]:
    """A member and its configuration.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    name, config = _compose_run(sweep, overrides)
    siblings = {}
    for arm in ARMS[config.comparison.arm].after if config.comparison.arm else ():
        others = [override for override in overrides if not override.startswith("arm=")]
        place = next((place for place, override in enumerate(overrides) if override.startswith("arm=")), len(others))
        sibling = [*others[:place], f"arm={arm}", *others[place:]]  # as in the sweep, of which it is often a member
        siblings[arm], _ = _compose_run(sweep, sibling)
    member = Member(
        sweep_dir=Path(sweep.hydra.sweep.dir).absolute(),
        name=name,
        overrides=tuple(overrides),
        cwd=str(Path.cwd()),
        siblings=siblings,
    )
    return member, config
