"""`tracking.register` in a real MLflow: one version for a finished run, which predicts as its network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from esper import fit
from esper.configs import TolariaConfig, TrackingConfig
from esper.configs.check import check
from esper.errors import ConfigError, RunError
from esper.launch.registration import register
from esper.sweep.summary import summarize
from esper.tracking import Journal
from esper.tracking.mlflow_store import connect
from tests.conftest import tiny_config
from tests.tracking.conftest import ended, started


def versions(uri: str) -> list[Any]:
    from mlflow import MlflowClient

    return list(MlflowClient(uri).search_model_versions("name='stripes'"))


def test_a_finished_run_becomes_one_version_however_often_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uri, run_dir = f"sqlite:///{tmp_path}/lab.db", tmp_path / "outputs" / "tiny" / "run"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    connect(uri)  # the tables take longer on a busy machine than a run waits for trackers
    config = tiny_config(tracking=TrackingConfig(register="stripes"))
    outcome = fit(config=config, run_dir=run_dir)
    assert not list((tmp_path / "outputs").glob("*.db"))
    printed = capsys.readouterr().out
    assert f"mlflow ui --backend-store-uri {uri}" in printed
    (version,) = versions(uri)
    assert f"/runs/{version.run_id}/model-metrics" in printed
    assert "models:/stripes/1" in printed
    assert version.tags["esper.run_name"] == "run"
    assert outcome.result is not None
    assert float(version.tags["esper.test_accuracy"]) == outcome.result["test_accuracy"]

    from mlflow import pyfunc

    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    found = pyfunc.load_model("models:/stripes/1").predict(images)
    assert list(found["label"]) == [one.label for one in outcome.network.predict(images)]

    known = json.loads((run_dir / "mlflow.json").read_text())
    (run_dir / "mlflow.json").write_text(json.dumps({**known, "versions": {}}))  # killed before it was noted
    summarize(run_dir.parent, {"run": config.tracking})
    assert json.loads((run_dir / "mlflow.json").read_text())["versions"] == known["versions"]
    shutil.rmtree(run_dir / "checkpoints")  # it is not exported again
    fit(config=config, run_dir=run_dir)
    assert "models:/stripes/1" in capsys.readouterr().out
    assert len(versions(uri)) == 1


def test_a_run_that_was_stopped_is_not_registered(tmp_path: Path) -> None:
    run_dir = tmp_path / "tiny" / "run"
    journal = Journal(run_dir / "journal.jsonl")
    started(journal)
    ended(journal, "interrupted", reason="SIGTERM")
    tracking = TrackingConfig(register="stripes")
    register(run_dir, tracking)
    ended(journal)
    journal.close()
    with pytest.raises(RunError, match=r"MLflow does not have the run; first: esper sync"):
        register(run_dir, tracking)


def test_a_server_that_is_down_costs_the_version_and_not_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracking = TrackingConfig(uri="http://127.0.0.1:1", register="stripes")
    outcome = fit(config=tiny_config(tracking=tracking), run_dir=tmp_path / "tiny" / "run")
    assert outcome.result is not None
    printed = capsys.readouterr().out
    assert "tracking.register=stripes: not registered (MLflow does not have the run" in printed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tracking__register": "a/b"}, "tracking.register=a/b: allowed is a name of up to 100 letters"),
        ({"tracking__register": "a..b"}, "allowed is a name"),
        ({"tracking__register": ""}, "allowed is a name"),
        ({"tracking__register": "it's"}, "allowed is a name"),
        ({"tracking__register": "a", "tracking__name": "wandb"}, "tracking=wandb; use tracking=mlflow"),
        ({"tracking__register": "a", "model__digest": "m0"}, "network given to fit as an object"),
    ],
)
def test_what_cannot_be_registered_is_refused_before_the_training(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=r"tracking\.register=") as refused:
        check(tiny_config(**{"tracking__name": "mlflow", **changes}))
    assert message in str(refused.value)
    check(tiny_config(tracking__name="mlflow", tracking__register="lab.stripes v2"))
    assert TolariaConfig().tracking.register is None
