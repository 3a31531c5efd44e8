"""Compose the members of a sweep, each with its own configuration, from Hydra's configuration of the sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from esper.configs import TolariaConfig
from esper.configs.comparison import ARMS
from esper.configs.explain import explain
from esper.configs.identity import run_name
from esper.configs.load import from_hydra
from esper.sweep.manifest import Member

__all__ = ["compose_config", "compose_member"]


def compose_config(sweep: DictConfig, overrides: Sequence[str]) -> TolariaConfig:
    """The configuration of a member, composed as Hydra's launchers do.

    Raises:
        ConfigError: it cannot be used.
    """
    try:
        return from_hydra(GlobalHydra.instance().config_loader().load_sweep_config(sweep, list(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error) from None


def compose_member(sweep: DictConfig, overrides: Sequence[str]) -> tuple[Member, TolariaConfig]:
    """A member and its configuration.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    config = compose_config(sweep, overrides)
    siblings = {}
    for arm in ARMS[config.comparison.arm].after if config.comparison.arm else ():
        sibling = [*(override for override in overrides if not override.startswith("arm=")), f"arm={arm}"]
        siblings[arm] = run_name(compose_config(sweep, sibling), sibling)
    member = Member(
        sweep_dir=Path(sweep.hydra.sweep.dir).absolute(),
        name=run_name(config, overrides),
        overrides=tuple(overrides),
        cwd=str(Path.cwd()),
        siblings=siblings,
    )
    return member, config
