"""One run in a real MLflow, given its journal piece by piece, twice, or by two at once."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from esper.configs import OptimizationConfig, TrackingConfig
from esper.errors import RunError
from esper.tracking import Journal, MlflowRun, read
from tests.tracking.conftest import ended, grew, started, trained

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")  # one database for the module: its tables take seconds


@pytest.fixture
def journal(outputs: Path, request: pytest.FixtureRequest) -> Iterator[Journal]:
    """The journal of a new run; its parent is the run folder."""
    journal = Journal(outputs / "tiny" / request.node.name / "journal.jsonl")
    started(journal)
    yield journal
    journal.close()


def report(outputs: Path, journal: Journal, *, finish: bool = False) -> int:
    """Tell MLflow the whole journal, as a process does that has just begun; returns how many points were new."""
    run_dir = journal.path.parent
    with contextlib.closing(MlflowRun(TrackingConfig(), run_dir=run_dir, outputs_dir=outputs)) as run:
        run.ingest(read(journal.path))
        if finish:
            run.finish()
        return run.num_logged


def client(outputs: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}")


def run_of(outputs: Path, journal: Journal) -> Any:
    (run_id,) = json.loads((journal.path.parent / "mlflow.json").read_text())["run_ids"].values()
    return client(outputs).get_run(run_id)


def curve(outputs: Path, journal: Journal, key: str) -> list[tuple[int, float]]:
    run_id = run_of(outputs, journal).info.run_id
    return sorted((metric.step, metric.value) for metric in client(outputs).get_metric_history(run_id, key))


def test_a_redone_step_is_not_logged_twice_and_a_new_one_is(outputs: Path, journal: Journal) -> None:
    trained(journal, range(1, 4))
    offset = journal.sync()
    trained(journal, range(4, 7))
    report(outputs, journal)
    journal.rewind(offset)
    trained(journal, range(4, 9), loss=5.0)
    report(outputs, journal)
    steps = [step for step, _ in curve(outputs, journal, "train/loss")]
    assert steps == list(range(1, 9))
    assert [step for step, _ in curve(outputs, journal, "epoch/val_loss")] == [1, 2]


def test_two_growths_at_one_step_are_both_logged_however_they_are_told(outputs: Path, journal: Journal) -> None:
    grew(journal, step=4, graft_id=1, num_parameters=120)
    report(outputs, journal)
    grew(journal, step=4, graft_id=2, num_parameters=140)
    report(outputs, journal)
    assert report(outputs, journal) == 0
    assert curve(outputs, journal, "growth/num_parameters") == [(0, 100), (4, 120), (4, 140)]


def test_an_interrupted_run_is_killed_and_runs_again_when_resumed(outputs: Path, journal: Journal) -> None:
    trained(journal, range(1, 5))
    ended(journal, "interrupted", reason="SIGTERM", step=4)
    report(outputs, journal, finish=True)
    first = run_of(outputs, journal)
    assert first.info.status == "KILLED"
    assert first.data.tags["esper.reason"] == "SIGTERM"
    started(journal, resumed_from="checkpoints/step-00000004", step=4)
    report(outputs, journal)
    again = run_of(outputs, journal)
    assert (again.info.run_id, again.info.status) == (first.info.run_id, "RUNNING")
    assert again.data.tags["esper.reason"] == ""


@pytest.mark.parametrize(("status", "expected"), [("finished", "FINISHED"), ("failed", "FAILED")])
def test_the_status_is_what_the_run_came_to(outputs: Path, journal: Journal, status: str, expected: str) -> None:
    ended(journal, status)
    report(outputs, journal, finish=True)
    assert run_of(outputs, journal).info.status == expected


def test_a_setting_changed_on_resuming_is_noted_in_a_tag(outputs: Path, journal: Journal) -> None:
    report(outputs, journal)
    started(journal, resumed_from="x", optimization=dataclasses.replace(OptimizationConfig(), patience=7))
    report(outputs, journal)
    run = run_of(outputs, journal)
    assert run.data.params["optimization.patience"] == "null"
    assert run.data.tags["esper.changed_parameters"] == "optimization.patience=7"


def test_the_newest_checkpoint_goes_along_without_its_optimizer(outputs: Path, journal: Journal) -> None:
    steps = {
        "step-00000004": 4,
        "best-00000008": 8,
        "step-00000008": 8,
        ".step-00000012.77": 12,
        "step-00000012.bak": 12,
    }
    for name, step in steps.items():
        folder = journal.path.parent / "checkpoints" / name
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({"step": step, "name": name}))
        (folder / "model.safetensors").write_text("")
        (folder / "optimizer.safetensors").write_text("")
    report(outputs, journal, finish=True)
    run_id = run_of(outputs, journal).info.run_id
    files = {artifact.path for artifact in client(outputs).list_artifacts(run_id, "checkpoint")}
    assert files == {"checkpoint/manifest.json", "checkpoint/model.safetensors"}
    manifest = outputs / "mlartifacts" / run_id / "artifacts" / "checkpoint" / "manifest.json"
    assert json.loads(manifest.read_text())["name"] == "step-00000008"


def test_more_points_than_a_batch_takes_arrive(outputs: Path, journal: Journal) -> None:
    trained(journal, range(1, 301))
    assert report(outputs, journal) > 1800
    assert len(curve(outputs, journal, "train/loss")) == 300


def test_a_run_made_just_before_a_kill_is_found_again(outputs: Path, journal: Journal) -> None:
    report(outputs, journal)
    file = journal.path.parent / "mlflow.json"
    first = run_of(outputs, journal).info.run_id
    file.write_text(json.dumps({**json.loads(file.read_text()), "run_ids": {}}))
    report(outputs, journal)
    assert run_of(outputs, journal).info.run_id == first


def test_a_run_deleted_in_mlflow_is_made_anew(outputs: Path, journal: Journal) -> None:
    trained(journal, range(1, 4))
    report(outputs, journal)
    first = run_of(outputs, journal).info.run_id
    client(outputs).delete_run(first)
    report(outputs, journal)
    assert run_of(outputs, journal).info.run_id != first
    assert len(curve(outputs, journal, "train/loss")) == 3


def test_only_one_at_a_time_reports_a_run(outputs: Path, journal: Journal) -> None:
    run_dir = journal.path.parent
    with contextlib.closing(MlflowRun(TrackingConfig(), run_dir=run_dir, outputs_dir=outputs)) as run:
        run.ingest(read(journal.path))
        with pytest.raises(RunError, match="is being reported by another process"):
            report(outputs, journal)
    assert report(outputs, journal) == 0


@pytest.mark.long
def test_processes_that_make_the_database_at_once_all_get_through(tmp_path: Path) -> None:
    code = "import sys; from esper.cli import main; main(['sync', sys.argv[1]])"
    folders = [tmp_path / "tiny" / str(number) for number in range(8)]
    for folder in folders:
        journal = Journal(folder / "journal.jsonl")
        started(journal)
        journal.close()
    processes = [subprocess.Popen([sys.executable, "-c", code, str(folder)]) for folder in folders]
    assert [process.wait() for process in processes] == [0] * 8
    names = Counter(run.info.run_name for run in client(tmp_path).search_runs(["1"]))
    assert names == Counter(map(str, range(8)))
