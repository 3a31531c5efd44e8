"""A sweep in a real MLflow: one parent, however often and by whomever it is reported."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from esper.configs import TrackingConfig
from esper.tracking import Journal, MlflowRun, read
from esper.tracking.mlflow_sweep import report_sweep
from tests.tracking.conftest import client, ended, started

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


def write_run(run_dir: Path, status: str | None = "finished") -> Path:
    """A run as MLflow knows it; without a status it goes on."""
    journal = Journal(run_dir / "journal.jsonl")
    started(journal)
    if status:
        ended(journal, status)
    journal.close()
    with contextlib.closing(MlflowRun(TrackingConfig(), run_dir=run_dir, outputs_dir=run_dir.parents[1])) as run:
        run.ingest(read(journal.path))
        if status:
            run.finish()
    return run_dir


def runs(outputs: Path) -> tuple[list[Any], list[Any]]:
    """The parents and the others that MLflow has."""
    mlflow = client(outputs)
    found = mlflow.search_runs([one.experiment_id for one in mlflow.search_experiments()])
    parents = [run for run in found if "rng_seed" not in run.data.params]
    return parents, [run for run in found if run not in parents]


def edit(outputs: Path, run: Any, key: str, value: str) -> None:
    client(outputs).set_tag(run.info.run_id, key, value)


def test_the_runs_of_a_sweep_have_one_parent_that_ends_as_they_do(outputs: Path) -> None:
    sweep_dir = outputs / "tiny"
    members = [write_run(sweep_dir / name) for name in ("a", "b")]
    (sweep_dir / "comparison.html").write_text("a page")
    assert report_sweep(sweep_dir, members) == 2
    ((parent,), children) = runs(outputs)
    assert (parent.info.run_name, parent.info.status) == ("tiny", "FINISHED")
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    for run in (parent, *children):
        origin = {
            key: value for key, value in run.data.tags.items() if key.startswith(("mlflow.user", "mlflow.source"))
        }
        assert origin == {
            "mlflow.user": "ada",
            "mlflow.source.name": "a.ipynb",
            "mlflow.source.type": "NOTEBOOK",
            "mlflow.source.git.commit": "0123abcd",
            "mlflow.source.git.dirty": "true",
        }
        assert [one.dataset.digest for one in run.inputs.dataset_inputs] == ["0011223344556677"]
    assert (outputs / "mlartifacts" / parent.info.run_id / "artifacts" / "comparison.html").read_text() == "a page"

    members.append(write_run(sweep_dir / "c", status=None))
    assert report_sweep(sweep_dir, members) == 3
    ((parent,), children) = runs(outputs)
    assert len(children) == 3
    assert parent.info.status == "RUNNING"
    assert parent.data.tags["mlflow.note.content"] == "A sweep of 3 runs: 2 finished, 1 running."

    edit(outputs, parent, "mlflow.note.content", "the published ones")
    edit(outputs, children[0], "mlflow.parentRunId", "another")
    write_run(sweep_dir / "c", status="failed")
    report_sweep(sweep_dir, members)
    ((parent,), edited) = runs(outputs)
    assert parent.info.status == "FAILED"
    assert parent.data.tags["mlflow.note.content"] == "the published ones"
    moved = [run.info.run_id for run in edited if run.data.tags["mlflow.parentRunId"] == "another"]
    assert moved == [children[0].info.run_id]


def test_runs_that_mlflow_does_not_know_have_no_parent(tmp_path: Path) -> None:
    for name in ("a", "b"):
        journal = Journal(tmp_path / "tiny" / name / "journal.jsonl")
        started(journal)
        journal.close()
    assert report_sweep(tmp_path / "tiny", [tmp_path / "tiny" / "a", tmp_path / "tiny" / "b"]) == 0
    assert not (tmp_path / "mlflow.db").exists()
