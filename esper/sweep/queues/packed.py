"""Sweep members that share GPUs of this machine: one process for each GPU, in which several train at the same time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from esper.configs import TolariaConfig
from esper.configs.comparison import ARMS
from esper.configs.schema import setting
from esper.errors import ConfigError
from esper.sweep.manifest import Job, Member
from esper.sweep.pack import AUTO, LOG
from esper.sweep.queues.base import QueueOptions
from esper.sweep.queues.local import LocalQueue, gpus_here

__all__ = ["MAX_MEMBERS", "PackedOptions", "PackedQueue", "on_cpu", "require_packable"]

MAX_MEMBERS = 24
"""CUDA has 32 streams; some serve to copy."""


@dataclass(kw_only=True)
class PackedOptions(QueueOptions):
    """`hydra.launcher` of `hydra/launcher=packed`."""

    members: str = setting(
        AUTO,
        "runs that train at once on a GPU: 1 to 24, or auto, as many as fit into its memory (not on SLURM: there 1 by "
        "default)",
    )

    def __post_init__(self) -> None:
        self.members = str(self.members)  # YAML reads a number


class PackedQueue(LocalQueue):
    """Jobs that are processes of this machine, one for each GPU, and train several members at the same time."""

    name = "packed"
    options_type: ClassVar[type[QueueOptions]] = PackedOptions
    options: PackedOptions  # type: ignore[assignment]

    def __init__(self, options: PackedOptions) -> None:
        members = options.members
        if members != AUTO and not (members.isdecimal() and 1 <= int(members) <= MAX_MEMBERS):
            raise ConfigError(f"hydra.launcher.members={members}: allowed are 1 to {MAX_MEMBERS}, and {AUTO}")
        self.options = options

    def require(self, configs: Sequence[TolariaConfig] = ()) -> None:
        """Raise a `ConfigError` if there is no GPU here, or a member cannot share one."""
        if not gpus_here() and not on_cpu():
            raise ConfigError(
                "hydra/launcher=packed: this machine has no GPU to share; on CPUs use hydra/launcher=local, which runs "
                "several processes at a time"
            )
        require_packable(configs, "hydra/launcher=packed")

    def describe(self) -> str:
        """How many runs at a time, and on how many GPUs, in one line."""
        number, gpus = self.options.members, len(gpus_here())
        fit = "as many at a time as fit" if number == AUTO else f"{number} at a time"
        return f"this machine, {fit} on {'one GPU' if gpus == 1 else f'each of {gpus} GPUs'}"

    def program(self) -> list[str]:
        """Module and arguments of a job's process, to which the folders of its members are added."""
        return ["esper.sweep.pack", self.options.members]

    def jobs_of(self, members: Sequence[Member], num_jobs: int) -> list[Sequence[Member]]:
        """The members dealt over the GPUs."""
        return [members[i::num_jobs] for i in range(min(num_jobs, len(members)))]

    @staticmethod
    def log_file(member: Member, job: Job) -> Path:  # noqa: ARG004
        """The file that holds the member's output, or that of its process if it has not begun."""
        own = member.folder / LOG
        return own if own.exists() else member.folder.parent / "jobs.log"

    def _num_jobs(self, gpus: Sequence[str]) -> int:
        return len(gpus) or 1


def require_packable(configs: Sequence[TolariaConfig], where: str) -> None:
    """Raise a `ConfigError` if a member cannot share a GPU with others.

    Args:
        configs: of the members.
        where: the setting that asks for it.
    """
    for config in configs:
        arm = config.comparison.arm
        if config.device not in ("auto", "cuda") and not on_cpu():
            raise ConfigError(
                f"device={config.device}: {where} shares GPUs; use device=cuda, or hydra/launcher=local on CPUs"
            )
        if config.profile_training:
            raise ConfigError(
                f"profile_training=true: {where} would profile all runs at once; use hydra/launcher=local"
            )
        if arm is not None and ARMS[arm].budget == "seconds":
            raise ConfigError(
                f"arm={arm}: compares times, and with {where} runs slow each other down; use hydra/launcher=local"
            )


def on_cpu() -> bool:
    """Whether runs may share a CPU: only for Esper's tests, since several processes are faster."""
    return os.environ.get("ESPER_TEST_PACKED_ON_CPU") == "1"
