"""The journal of a run, and the trackers that are updated from it."""

from __future__ import annotations

from esper.tracking.environment import environment, git_diff
from esper.tracking.journal import Journal, read, run_folders
from esper.tracking.mlflow import MlflowRun
from esper.tracking.mlflow_store import tracking_uri
from esper.tracking.tracker_thread import TrackerThread
from esper.tracking.trackers import Tracker, trackers, unused_variables
from esper.tracking.wandb import WandbRun

__all__ = [
    "Journal",
    "MlflowRun",
    "Tracker",
    "TrackerThread",
    "WandbRun",
    "environment",
    "git_diff",
    "read",
    "run_folders",
    "trackers",
    "tracking_uri",
    "unused_variables",
]
