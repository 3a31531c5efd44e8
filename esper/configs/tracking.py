"""Where results are reported besides the journal."""

from __future__ import annotations

from dataclasses import dataclass

from esper.configs.schema import setting

__all__ = ["TrackingConfig"]


@dataclass(kw_only=True)
class TrackingConfig:
    """Group `tracking`."""

    name: str = setting("mlflow", "tracker", choices=("mlflow", "none"))
    uri: str | None = setting(None, "MLflow tracking URI; null: mlflow.db (SQLite) in the outputs folder")
    experiment: str | None = setting(None, "MLflow experiment; null: experiment_name")
    flush_interval_s: float = setting(5.0, "seconds between uploads to the tracker", above=0)
