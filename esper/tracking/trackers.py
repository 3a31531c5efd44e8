"""The trackers that `tracking=` selects; each is updated from the run's journal."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from esper.configs import TrackingConfig
from esper.redact import without_credentials
from esper.tracking.mlflow import MlflowRun
from esper.tracking.mlflow_store import tracking_uri
from esper.tracking.wandb import WandbRun

__all__ = ["Tracker", "TrackerRun", "is_left_to_sync", "trackers", "unused_variables"]

_UNUSED = {
    "mlflow": {
        "MLFLOW_TRACKING_URI": "tracking.uri",
        "MLFLOW_EXPERIMENT_NAME": "tracking.experiment",
        "MLFLOW_EXPERIMENT_ID": "tracking.experiment",
        "MLFLOW_RUN_ID": "a run folder has its own run",
    },
    "wandb": {
        "WANDB_ENTITY": "tracking.wandb_entity",
        "WANDB_PROJECT": "tracking.wandb_project",
        "WANDB_NOTES": "description",
        "WANDB_TAGS": "tags",
        "WANDB_RUN_GROUP": "experiment_name",
        "WANDB_NAME": "a run is named as its folder",
        "WANDB_RUN_ID": "a run folder has its own run",
        "WANDB_DIR": "it writes to the run folder",
    },
}
"""Variables of the trackers that Esper does not use, with the setting that decides instead, or the reason."""


class TrackerRun(Protocol):
    """One run in a tracker, updated from the events of its journal, from the first event on.

    `num_logged` counts the points or messages that were new to the tracker. Any method may raise any error of the
    tracker's library; after that the object can only be closed.
    """

    num_logged: int

    def ingest(self, events: Iterable[dict[str, Any]]) -> None:
        """Report the next events."""

    def finish(self) -> None:
        """Report the end of the run, and upload files of the run folder."""

    def close(self) -> None:
        """Release the lock on this run's reporting."""


@dataclass(frozen=True, kw_only=True)
class Tracker:
    """Where a run is reported.

    Attributes:
        name: for messages.
        place: URI or project, without credentials.
        open: makes the tracker's run; nothing is imported or sent before the first event.
        is_left_to_sync: a training run does not report here itself; `esper sync` does.
    """

    name: str
    place: str
    open: Callable[[], TrackerRun]
    is_left_to_sync: bool = False


def trackers(config: TrackingConfig, *, run_dir: Path, outputs_dir: Path, is_contained: bool = False) -> list[Tracker]:
    """The trackers that `config.name` selects.

    Args:
        config: names and places.
        run_dir: folder of the run.
        outputs_dir: folder of MLflow's default database.
        is_contained: see `MlflowRun`.
    """
    mlflow = Tracker(
        name="MLflow",
        place=without_credentials(tracking_uri(config, outputs_dir=outputs_dir)),
        open=lambda: MlflowRun(config, run_dir=run_dir, outputs_dir=outputs_dir, is_contained=is_contained),
        is_left_to_sync=is_left_to_sync(config),
    )
    project = "/".join(part for part in (config.wandb_entity, config.wandb_project) if part)
    wandb = Tracker(name="W&B", place=project, open=lambda: WandbRun(config, run_dir=run_dir))
    return {"mlflow": [mlflow], "wandb": [wandb], "both": [mlflow, wandb], "none": []}[config.name]


def is_left_to_sync(config: TrackingConfig) -> bool:
    """Whether this is a SLURM job that would write MLflow's default database.

    Jobs on several nodes would write one SQLite file on a shared file system, where its locks may not work.
    """
    return not (config.uri or os.environ.get("MLFLOW_TRACKING_URI")) and "SLURM_JOB_ID" in os.environ


def unused_variables(config: TrackingConfig, *, experiment_name: str) -> str:
    """The trackers' environment variables that are set and say something else than the run does; empty if none."""
    used = {
        "MLFLOW_TRACKING_URI": config.uri or os.environ.get("MLFLOW_TRACKING_URI"),
        "MLFLOW_EXPERIMENT_NAME": config.experiment or experiment_name,
        "WANDB_ENTITY": config.wandb_entity or os.environ.get("WANDB_ENTITY"),
        "WANDB_PROJECT": config.wandb_project,
        "WANDB_RUN_GROUP": experiment_name,
    }
    names = {"mlflow": ["mlflow"], "wandb": ["wandb"], "both": ["mlflow", "wandb"], "none": []}[config.name]
    found = [
        f"{variable} ({instead})"
        for name in names
        for variable, instead in _UNUSED[name].items()
        if os.environ.get(variable) and os.environ[variable] != used.get(variable)
    ]
    return ", ".join(found)
