"""What is printed to open a run in MLflow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from esper.configs import TrackingConfig
from esper.tracking.mlflow_page import mlflow_links

CHARTS = "/#/experiments/7/runs/0a1b/model-metrics?workflowType=machine_learning"


def printed(run_dir: Path, uri: str, *, known: bool = True, place: str | None = None) -> dict[str, str]:
    ids = {"run_ids": {place or uri: "0a1b"}, "experiment_ids": {place or uri: "7"}}
    (run_dir / "mlflow.json").write_text(json.dumps({"uid": "0" * 32, **(ids if known else {"run_ids": {}})}))
    return mlflow_links(TrackingConfig(uri=uri), run_dir=run_dir, outputs_dir=run_dir)


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("http://mlflow:5000", "http://mlflow:5000"),
        ("https://lab.example/mlflow/", "https://lab.example/mlflow"),
        ("http://ada:s3cret@mlflow:5000", "http://mlflow:5000"),
        ("http://mlflow/?token=s3cret", "http://mlflow"),
    ],
)
def test_a_server_has_an_address_of_its_own_without_credentials(tmp_path: Path, uri: str, address: str) -> None:
    place = {
        "http://ada:s3cret@mlflow:5000": "http://mlflow:5000",
        "http://mlflow/?token=s3cret": "http://mlflow/?token=***",
    }
    assert printed(tmp_path, uri, place=place.get(uri)) == {"mlflow": address + CHARTS}
    assert printed(tmp_path, uri, known=False) == {"mlflow": address}


@pytest.mark.parametrize(
    "uri", ["sqlite:////lab/own.db", "postgresql://db/mlflow", "file:///lab/mlruns", "/lab/mlruns"]
)
def test_of_a_store_without_server_the_command_and_the_address_there_are_printed(tmp_path: Path, uri: str) -> None:
    command = f"mlflow ui --backend-store-uri {uri}"
    assert printed(tmp_path, uri) == {"mlflow": command, "charts": f"http://127.0.0.1:5000{CHARTS}"}
    assert printed(tmp_path, uri, known=False) == {"mlflow": command}


def test_a_damaged_file_costs_the_address_of_the_charts_only(tmp_path: Path) -> None:
    (tmp_path / "mlflow.json").write_text("{")
    found = mlflow_links(TrackingConfig(), run_dir=tmp_path, outputs_dir=tmp_path)
    assert found == {"mlflow": f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db"}
