"""Which of the trackers' environment variables count, and what is said of the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from esper.configs import TrackingConfig
from esper.tracking import trackers, tracking_uri, unused_variables


@pytest.fixture(autouse=True)
def _server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")


def test_mlflows_own_variable_names_the_server_unless_a_setting_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tracking_uri(TrackingConfig(), outputs_dir=tmp_path) == "http://mlflow:5000"
    assert tracking_uri(TrackingConfig(uri="http://other"), outputs_dir=tmp_path) == "http://other"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert tracking_uri(TrackingConfig(), outputs_dir=tmp_path) == f"sqlite:///{tmp_path / 'mlflow.db'}"


def test_a_slurm_job_reports_to_a_server_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    (tracker,) = trackers(TrackingConfig(), run_dir=tmp_path, outputs_dir=tmp_path)
    assert (tracker.place, tracker.is_left_to_sync) == ("http://mlflow:5000", False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (tracker,) = trackers(TrackingConfig(), run_dir=tmp_path, outputs_dir=tmp_path)
    assert tracker.is_left_to_sync


def test_variables_that_do_not_count_are_named_with_the_setting_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT", "WANDB_ENTITY"):
        monkeypatch.setenv(name, "lab")
    assert unused_variables(TrackingConfig(), experiment_name="e") == "MLFLOW_EXPERIMENT_NAME (tracking.experiment)"
    assert unused_variables(TrackingConfig(uri="http://other"), experiment_name="lab") == (
        "MLFLOW_TRACKING_URI (tracking.uri)"
    )
    assert (
        unused_variables(TrackingConfig(name="wandb"), experiment_name="e") == "WANDB_PROJECT (tracking.wandb_project)"
    )
    both = TrackingConfig(name="both", experiment="lab", wandb_project="lab", wandb_entity="us")
    assert unused_variables(both, experiment_name="e") == "WANDB_ENTITY (tracking.wandb_entity)"
    assert unused_variables(TrackingConfig(name="none"), experiment_name="e") == ""
