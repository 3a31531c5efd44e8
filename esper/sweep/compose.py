"""From what Hydra composed for a sweep to its members, each with its own configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from esper.configs import TolariaConfig
from esper.configs.comparison import wave
from esper.configs.explain import explain
from esper.configs.identity import run_name
from esper.configs.load import from_hydra
from esper.launch import exits
from esper.sweep.dry_run import rehearse_sweep
from esper.sweep.launch import launch, queue_of
from esper.sweep.manifest import Member

__all__ = ["compose_member", "launch_members", "member_of"]


def compose_member(sweep: DictConfig, overrides: Sequence[str]) -> TolariaConfig:
    """The configuration of a member, composed as Hydra's launchers would.

    Raises:
        ConfigError: it cannot be used.
    """
    try:
        return from_hydra(GlobalHydra.instance().config_loader().load_sweep_config(sweep, list(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error) from None


def launch_members(
    sweep: DictConfig, job_overrides: Sequence[Sequence[str]], *, queue: str, options: Mapping[str, Any]
) -> list[float | None]:
    """Launch members and follow them; returns the validation accuracy of each, None where there is none."""
    members = [member_of(sweep, overrides) for overrides in job_overrides]
    if members[0][1].dry_run:  # a sweeper that searches asks for its members one by one
        rehearse_sweep(members, queue_of(queue, options))
        return [None] * len(members)
    ended = launch(members, queue_of(queue, options))
    for member, _ in members:
        standing = ended[member.name]
        if standing.state != "finished" and exits.failures is not None:
            exits.failures.append(f"{' '.join(member.overrides)}: {standing.reason or standing.state}")
    return [ended[member.name].metric for member, _ in members]


def member_of(sweep: DictConfig, overrides: Sequence[str]) -> tuple[Member, TolariaConfig]:
    """A member and its configuration.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    config = compose_member(sweep, overrides)
    return (
        Member(
            sweep_dir=Path(sweep.hydra.sweep.dir).absolute(),
            name=run_name(config, overrides),
            overrides=tuple(overrides),
            cwd=os.getcwd(),  # noqa: PTH109
            siblings=_siblings(sweep, overrides, config),
        ),
        config,
    )


def _siblings(sweep: DictConfig, overrides: Sequence[str], config: TolariaConfig) -> dict[str, str]:
    """The runs that the arm is measured against: those of the same overrides with another arm."""
    names = {}
    for arm in ("grown", "final_flops") if wave(config.comparison.arm) else ():
        asked = [*(one for one in overrides if not one.startswith("arm=")), f"arm={arm}"]
        names[arm] = run_name(compose_member(sweep, asked), asked)
    return names
