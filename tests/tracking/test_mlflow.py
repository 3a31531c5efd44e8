"""A whole training, reported to a real MLflow."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import json
import os
import sqlite3
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from esper.configs import TrackingConfig
from esper.configs.paths import sqlite_url
from esper.errors import RunError
from esper.tolaria import TolariaTrainer
from esper.tolaria.data_record import recorded_data
from esper.tracking.mlflow_store import connect
from tests.conftest import tiny_config
from tests.tracking.conftest import client, mlflow_run


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("outputs")
    connect(sqlite_url(outputs / "mlflow.db"))  # its tables take longer on a busy machine than a run waits for trackers
    return outputs


def train(run_dir: Path, *, stop_after: int | None = None, **tracking: Any) -> TolariaTrainer:
    config = tiny_config(
        tracking=TrackingConfig(flush_interval_s=0.2, **tracking),
        description="a note",
        tags=["red", "blue"],
        morphogenetic__improvement_threshold=0.0,
    )
    trainer = TolariaTrainer(config, run_dir=run_dir)

    async def go() -> None:
        await trainer.initialize()
        if stop_after is not None:
            for _ in range(stop_after):
                await trainer.train_epoch()
                await trainer.handle_end_of_epoch()
            trainer.request_stop("test")
        await trainer.train()
        await trainer.shutdown()

    asyncio.run(go())
    return trainer


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "unable to open database file"),  # a folder
        ("a text, long enough for what is first read of a database" * 3, "file is not a database"),
    ],
)
def test_a_file_that_is_no_database_is_refused_with_a_remedy(tmp_path: Path, content: str | None, told: str) -> None:
    file = tmp_path / "mlflow.db"
    if content is None:
        file.mkdir()
    else:
        file.write_text(content)
    with pytest.raises(RunError, match=rf"database {file} cannot be used: {told}; move it elsewhere"):
        connect(sqlite_url(file))
    below = tmp_path / "text" / "mlflow.db"
    below.parent.touch()
    with pytest.raises(RunError, match=rf"database {below} cannot be used: .*File exists"):
        connect(sqlite_url(below))


def test_a_database_that_is_read_only_is_refused_unless_it_is_only_read(
    outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = sqlite_url(outputs / "mlflow.db")
    monkeypatch.setattr("os.access", lambda _, mode: mode != os.W_OK)  # root may write to any file
    with pytest.raises(RunError, match=r"mlflow.db cannot be used: it is read-only; move it elsewhere"):
        connect(uri)
    assert connect(uri, to_write=False).get_experiment("0").name == "Default"


def test_a_database_that_another_process_writes_to_is_used(outputs: Path) -> None:
    file = outputs / "mlflow.db"
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        assert connect(sqlite_url(file)).get_experiment("0").name == "Default"


def points(outputs: Path, run: Any) -> Counter[tuple[str, int]]:
    history = client(outputs).get_metric_history
    return Counter((key, metric.step) for key in run.data.metrics for metric in history(run.info.run_id, key))


def test_a_run_shows_parameters_curves_growth_and_artifacts(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = outputs / "tiny" / "whole"
    monkeypatch.setattr(sys, "argv", [__file__])
    train(run_dir)
    run = mlflow_run(outputs, run_dir)
    assert run.info.status == "FINISHED"
    assert run.data.params["model.widths"] == "[4, 8]"
    assert run.data.tags["mlflow.note.content"] == "a note"
    assert run.data.tags["esper.tags"] == "red, blue"
    assert run.data.tags["mlflow.user"] == getpass.getuser()
    assert run.data.tags["mlflow.source.name"] == __file__
    assert run.data.tags["mlflow.source.type"] == "LOCAL"
    (data,) = [one.dataset for one in run.inputs.dataset_inputs]
    found = recorded_data(run_dir)
    assert found is not None
    assert (data.name, data.digest) == ("synthetic", found.digest)
    assert json.loads(data.profile) == {"num_train": 192, "num_controller": 64, "num_judge": 64, "num_test": 80}
    assert run.data.tags["growth.1"].startswith("basic_block at layer1.0:beside, step 6: ")
    logged = points(outputs, run)
    assert {step for key, step in logged if key == "train/loss"} == {2, 4, 6, 8, 10, 12, 14, 16, 18}
    assert {step for key, step in logged if key == "epoch/val_accuracy"} == {1, 2, 3}
    result = json.loads((run_dir / "status.json").read_text())["result"]
    assert run.data.metrics["test/accuracy"] == pytest.approx(result["test_accuracy"])
    names = {artifact.path for artifact in client(outputs).list_artifacts(run.info.run_id)}
    assert {"config.yaml", "journal.jsonl", "growth.json", "checkpoint"} <= names
    files = {artifact.path for artifact in client(outputs).list_artifacts(run.info.run_id, "checkpoint")}
    assert files == {"checkpoint/manifest.json", "checkpoint/model.safetensors"}


def test_a_resumed_run_goes_on_in_the_same_mlflow_run_without_a_point_twice(outputs: Path) -> None:
    run_dir = outputs / "tiny" / "resumed"
    train(run_dir, stop_after=2)
    first = mlflow_run(outputs, run_dir)
    assert first.info.status == "KILLED"
    newest = max((run_dir / "checkpoints").glob("step-*"))
    for file in newest.iterdir():  # the second epoch is done once more
        file.unlink()
    newest.rmdir()
    train(run_dir)
    run = mlflow_run(outputs, run_dir)
    assert run.info.run_id == first.info.run_id
    assert run.info.status == "FINISHED"
    logged = points(outputs, run)
    assert [key for key, count in logged.items() if count > 1] == []
    assert {step for key, step in logged if key == "train/loss"} == set(range(2, 19, 2))
