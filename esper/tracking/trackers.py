"""The trackers that a configuration names; each makes its own picture of a run from the run's journal."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from esper.configs import TrackingConfig
from esper.tracking.environment import without_credentials
from esper.tracking.history import History
from esper.tracking.mlflow import MlflowRun, tracking_uri
from esper.tracking.wandb import WandbRun

__all__ = ["Reported", "Target", "TrackedRun", "Tracker", "trackers"]


class Reported(Protocol):
    """A run elsewhere, brought up to date from the events of its journal, given from the first on.

    `num_logged` is how many points or messages were new there. Any method raises whatever lies under it, and then
    nothing is left to do but to close.
    """

    num_logged: int

    def ingest(self, events: Iterable[dict[str, Any]]) -> None:
        """Report the next events."""

    def finish(self) -> None:
        """Report the end, and what the run folder holds."""

    def close(self) -> None:
        """Let others report this run."""


class TrackedRun(Reported, Protocol):
    """A run in a tracker; `history` is the run as told so far."""

    history: History


R = TypeVar("R", bound=Reported, covariant=True)


@dataclass(frozen=True, kw_only=True)
class Target(Generic[R]):
    """Where a run is reported.

    Attributes:
        name: as its users call it.
        place: what it is in there: a URI or a project, without credentials.
        open: makes the run's picture there; nothing is imported or sent before the first event.
        is_left_to_sync: whether a run only writes its journal, and `esper sync` does the rest.
    """

    name: str
    place: str
    open: Callable[[], R]
    is_left_to_sync: bool = False


Tracker = Target[TrackedRun]


def trackers(config: TrackingConfig, *, run_dir: Path, outputs_dir: Path) -> list[Tracker]:
    """Those that `tracking=` names.

    Args:
        config: names, places.
        run_dir: folder of the run.
        outputs_dir: folder of MLflow's default database.
    """
    mlflow = Tracker(
        name="MLflow",
        place=without_credentials(tracking_uri(config, outputs_dir=outputs_dir)),
        open=lambda: MlflowRun(config, run_dir=run_dir, outputs_dir=outputs_dir),
        # Jobs on several machines would write one file of a shared file system, where SQLite's locks need not hold.
        is_left_to_sync=config.uri is None and "SLURM_JOB_ID" in os.environ,
    )
    project = "/".join(part for part in (config.wandb_entity, config.wandb_project) if part)
    wandb = Tracker(name="W&B", place=project, open=lambda: WandbRun(config, run_dir=run_dir))
    return {"mlflow": [mlflow], "wandb": [wandb], "both": [mlflow, wandb], "none": []}[config.name]
