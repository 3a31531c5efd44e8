"""Compose the members of a sweep, each with its own configuration, from Hydra's configuration of the sweep."""

from __future__ import annotations

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
from esper.sweep.manifest import Member

__all__ = ["compose_member", "compose_run", "run_folder"]


def compose_run(sweep: DictConfig, overrides: Sequence[str]) -> tuple[str, TolariaConfig]:
    """The name and the configuration of a member's run, composed as Hydra's launchers do.

    Raises:
        ConfigError: it cannot be used.
    """
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
    name, config = compose_run(sweep, overrides)
    siblings = {}
    for arm in ARMS[config.comparison.arm].after if config.comparison.arm else ():
        sibling = [*(override for override in overrides if not override.startswith("arm=")), f"arm={arm}"]
        siblings[arm], _ = compose_run(sweep, sibling)
    member = Member(
        sweep_dir=Path(sweep.hydra.sweep.dir).absolute(),
        name=name,
        overrides=tuple(overrides),
        cwd=str(Path.cwd()),
        siblings=siblings,
    )
    return member, config
