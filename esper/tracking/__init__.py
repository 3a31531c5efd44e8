"""The journal of a run, and the trackers that follow it."""

from __future__ import annotations

from esper.tracking.environment import environment, git_diff
from esper.tracking.files import write_atomically
from esper.tracking.follow import Follower
from esper.tracking.journal import Journal, read, run_folders
from esper.tracking.mlflow import MlflowRun, tracking_uri
from esper.tracking.trackers import Target, trackers
from esper.tracking.wandb import WandbRun

__all__ = [
    "Follower",
    "Journal",
    "MlflowRun",
    "Target",
    "WandbRun",
    "environment",
    "git_diff",
    "read",
    "run_folders",
    "trackers",
    "tracking_uri",
    "write_atomically",
]
