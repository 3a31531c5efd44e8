"""Hydra's launchers for the queues of `esper.sweep.launchers`, such as `SlurmLauncher` for `slurm`.

Every Hydra application imports this module at its start, so it imports nothing of Esper. Only `esper-train` registers
the launchers.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

__all__ = ["launcher_class"]


class _QueueLauncher(Launcher):
    """Submits every member of a sweep with its configuration, and waits for all of them."""

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
        """Keep the composed configuration; the jobs call `esper.launch.run` instead of the task function."""
        self._config = config

    def launch(
        self,
        job_overrides: Sequence[Sequence[str]],
        initial_job_idx: int,  # noqa: ARG002
    ) -> Sequence[JobReturn]:
        """Launch the members with these overrides and wait for them; returns their leading metrics in validation."""
        from esper.launch.exits import record_failure
        from esper.sweep.compose import compose_member
        from esper.sweep.dry_run import dry_run_sweep
        from esper.sweep.launch import launch
        from esper.sweep.launchers import queue_of

        members = [compose_member(self._config, overrides) for overrides in job_overrides]
        queue = queue_of(self.queue, self._options)
        returns = [JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED) for overrides in job_overrides]
        if members[0][1].dry_run:  # of a sweeper that searches; `esper.callbacks` does that of the basic sweeper
            dry_run_sweep(members, queue)
            return returns
        states = launch(members, queue)
        for (member, _), job_return in zip(members, returns, strict=True):
            state = states[member.name]
            job_return.return_value = state.metric
            if state.state != "finished":
                record_failure(f"{shlex.join(member.overrides)}: {state.reason or state.state}")
        return returns


@functools.cache
def launcher_class(queue: str) -> type[Launcher]:
    """Define Hydra's launcher for a queue: `SlurmLauncher` for `slurm`, as conf/hydra/launcher/slurm.yaml names it."""
    name = f"{queue.capitalize()}Launcher"
    defined = type(name, (_QueueLauncher,), {"queue": queue, "__module__": __name__})
    globals()[name] = defined  # Hydra looks it up in this module
    return defined
