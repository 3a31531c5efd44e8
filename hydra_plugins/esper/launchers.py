"""Hydra's launchers `slurm` and `local`. Hydra imports this whenever it starts: the work is in `esper.launch`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

__all__ = ["LocalLauncher", "SlurmLauncher"]


class _QueueLauncher(Launcher):
    """Submits every member of a sweep with its configuration, and returns how they ended."""

    queue = ""

    def __init__(self, **options: Any) -> None:
        self._options = options

    def setup(
        self,
        *,
        hydra_context: HydraContext,  # noqa: ARG002
        task_function: TaskFunction,  # noqa: ARG002
        config: DictConfig,
    ) -> None:
        """Take what Hydra has composed; the task is not called here, jobs have the same from `esper.launch`."""
        self._config = config

    def launch(
        self,
        job_overrides: Sequence[Sequence[str]],
        initial_job_idx: int,  # noqa: ARG002
    ) -> Sequence[JobReturn]:
        """Launch the members with these overrides; blocks until all have ended."""
        from esper.sweep.compose import launch_members

        metrics = launch_members(self._config, job_overrides, queue=self.queue, options=self._options)
        returns = [JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED) for overrides in job_overrides]
        for one, metric in zip(returns, metrics, strict=True):
            one.return_value = metric
        return returns


class SlurmLauncher(_QueueLauncher):
    """`hydra/launcher=slurm`."""

    queue = "slurm"


class LocalLauncher(_QueueLauncher):
    """`hydra/launcher=local`."""

    queue = "local"
