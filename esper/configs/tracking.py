"""Experiment trackers, which receive results besides the journal."""

from __future__ import annotations

from dataclasses import dataclass

from esper.configs.schema import setting

__all__ = ["TrackingConfig"]


@dataclass(kw_only=True)
class TrackingConfig:
    """Group `tracking`."""

    name: str = setting("mlflow", "trackers", choices=("mlflow", "wandb", "both", "none"))
    uri: str | None = setting(
        None, "MLflow tracking URI; null: MLFLOW_TRACKING_URI, else mlflow.db (SQLite) in the outputs folder"
    )
    experiment: str | None = setting(None, "MLflow experiment; null: experiment_name")
    register: str | None = setting(
        None,
        "model in MLflow's registry of which the finished run becomes a version, for mlflow.pyfunc.load_model; null: "
        "not registered",
    )
    wandb_project: str = setting("esper-morphogenetic", "W&B project")
    wandb_entity: str | None = setting(None, "W&B user or team; null: your default entity")
    git_diff: bool = setting(False, "upload git.diff, the uncommitted changes of your code, to the tracker as well")
    flush_interval_s: float = setting(5.0, "seconds between uploads to the tracker", above=0)
