"""One run in a real MLflow, given its journal piece by piece, twice, or by two at once."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from esper.configs import OptimizationConfig, TrackingConfig
from esper.configs.paths import sqlite_url
from esper.errors import RunError
from esper.tracking import Journal, MlflowRun, read
from esper.tracking.mlflow_store import connect
from tests.forked import ESPER, ForkedPython
from tests.tracking.conftest import client, ended, grew, mlflow_run, started, trained, wait_for

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


@pytest.fixture
def journal(outputs: Path, request: pytest.FixtureRequest) -> Iterator[Journal]:
    """The journal of a new run; its parent is the run folder."""
    journal = Journal(outputs / "tiny" / request.node.name / "journal.jsonl")
    started(journal)
    yield journal
    journal.close()


def report(outputs: Path, journal: Journal, *, finish: bool = False, config: TrackingConfig | None = None) -> int:
    """Tell MLflow the whole journal, as a process does that has just begun; returns how many points were new."""
    run_dir = journal.path.parent
    config = config or TrackingConfig()
    with contextlib.closing(MlflowRun(config, run_dir=run_dir, outputs_dir=outputs)) as run:
        run.ingest(read(journal.path))
        if finish:
            run.finish()
        return run.num_logged


def run_of(outputs: Path, journal: Journal) -> Any:
    return mlflow_run(outputs, journal.path.parent)


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


def as_printed(message: str) -> None:
    """Run the command that a message gives."""
    (command,) = re.findall(r"`(MLFLOW_TRACKING_URI=[^`]*)`", message)
    command = command.replace(" mlflow ", f" {shlex.quote(sys.executable)} -m mlflow ")
    subprocess.run(command, shell=True, check=True, capture_output=True)


def test_a_deleted_run_is_an_error_whose_remedy_works(outputs: Path, journal: Journal) -> None:
    trained(journal, range(1, 4))
    report(outputs, journal)
    first = run_of(outputs, journal).info.run_id
    client(outputs).delete_run(first)
    with pytest.raises(RunError, match=f"was deleted in MLflow; restore it with `.* runs restore --run-id {first}`"):
        report(outputs, journal)
    client(outputs).restore_run(first)
    trained(journal, range(4, 5))
    report(outputs, journal)
    assert run_of(outputs, journal).info.run_id == first
    assert len(curve(outputs, journal, "train/loss")) == 4


def test_a_deleted_run_is_made_anew_without_its_file(outputs: Path, journal: Journal) -> None:
    trained(journal, range(1, 4))
    report(outputs, journal)
    first = run_of(outputs, journal).info.run_id
    client(outputs).delete_run(first)
    (journal.path.parent / "mlflow.json").unlink()
    report(outputs, journal)
    assert run_of(outputs, journal).info.run_id != first
    assert len(curve(outputs, journal, "train/loss")) == 3


def test_a_deleted_experiment_is_an_error_whose_remedy_works(outputs: Path, journal: Journal) -> None:
    trained(journal, range(1, 4))
    elsewhere = TrackingConfig(experiment="an experiment")
    report(outputs, journal, config=elsewhere)
    experiment = run_of(outputs, journal).info.experiment_id
    client(outputs).delete_experiment(experiment)
    with pytest.raises(RunError, match=r"'an experiment' was deleted; restore it with.*another name") as error:
        report(outputs, journal, config=elsewhere)
    as_printed(str(error.value))
    assert report(outputs, journal, config=elsewhere) == 0
    assert run_of(outputs, journal).info.lifecycle_stage == "active"


def edit(outputs: Path, journal: Journal, key: str, value: str) -> None:
    client(outputs).set_tag(run_of(outputs, journal).info.run_id, key, value)


def test_what_a_person_changed_in_mlflow_stays_and_other_tags_go_on(outputs: Path, journal: Journal) -> None:
    ended(journal, "interrupted", reason="SIGTERM", step=4)
    report(outputs, journal, finish=True)
    edit(outputs, journal, "mlflow.note.content", "the best one")
    edit(outputs, journal, "environment.git_commit", "as published")
    edit(outputs, journal, "mine", "1")
    client(outputs).delete_tag(run_of(outputs, journal).info.run_id, "esper.tags")
    started(journal, resumed_from="checkpoints/step-00000004", step=4)
    for _ in range(2):
        report(outputs, journal)
    tags = run_of(outputs, journal).data.tags
    assert tags["mlflow.note.content"] == "the best one"
    assert (tags["environment.git_commit"], tags["mine"], tags["esper.reason"]) == ("as published", "1", "")
    assert "esper.tags" not in tags


def test_a_note_written_while_the_run_is_reported_stays(outputs: Path, journal: Journal) -> None:
    run_dir = journal.path.parent
    with contextlib.closing(MlflowRun(TrackingConfig(), run_dir=run_dir, outputs_dir=outputs)) as run:
        run.ingest(events := list(read(journal.path)))
        edit(outputs, journal, "esper.reason", "stopped by me")
        grew(journal, step=4, graft_id=1, num_parameters=120)
        ended(journal, "failed", reason="out of memory")
        run.ingest(list(read(journal.path))[len(events) :])
    tags = run_of(outputs, journal).data.tags
    assert tags["esper.reason"] == "stopped by me"
    assert tags["growth.1"].startswith("conv1x1 at layer1.0:beside")


def test_a_value_that_was_sent_just_before_a_kill_is_still_espers(outputs: Path, journal: Journal) -> None:
    report(outputs, journal)
    ended(journal, "failed", reason="a")
    report(outputs, journal)
    file = journal.path.parent / "mlflow.json"
    noted = file.read_text()
    started(journal, resumed_from="x")
    report(outputs, journal)
    assert set(json.loads(noted)["written"]) == set(json.loads(file.read_text())["written"])
    edit(outputs, journal, "esper.reason", "a")  # as if the kill had come before the last report
    report(outputs, journal)
    assert run_of(outputs, journal).data.tags["esper.reason"] == ""


def test_the_note_of_a_run_of_an_older_version_stays(outputs: Path, journal: Journal) -> None:
    report(outputs, journal)
    file = journal.path.parent / "mlflow.json"
    file.write_text(json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key != "written"}))
    edit(outputs, journal, "mlflow.note.content", "mine")
    ended(journal, "failed", reason="out of memory")
    report(outputs, journal)
    tags = run_of(outputs, journal).data.tags
    assert (tags["mlflow.note.content"], tags["esper.reason"]) == ("mine", "out of memory")


@pytest.mark.parametrize("git_diff", [False, True])
def test_uncommitted_changes_are_uploaded_only_if_asked(outputs: Path, journal: Journal, git_diff: bool) -> None:
    for name in ("config.yaml", "git.diff"):
        (journal.path.parent / name).touch()
    report(outputs, journal, finish=True, config=TrackingConfig(git_diff=git_diff))
    files = {artifact.path for artifact in client(outputs).list_artifacts(run_of(outputs, journal).info.run_id)}
    assert files == {"config.yaml", "journal.jsonl"} | ({"git.diff"} if git_diff else set())


def test_only_one_at_a_time_reports_a_run(outputs: Path, journal: Journal) -> None:
    run_dir = journal.path.parent
    with contextlib.closing(MlflowRun(TrackingConfig(), run_dir=run_dir, outputs_dir=outputs)) as run:
        run.ingest(read(journal.path))
        with pytest.raises(RunError, match="is being reported by another process"):
            report(outputs, journal)
    assert report(outputs, journal) == 0


@pytest.mark.long
def test_processes_that_make_the_database_at_once_all_get_through(tmp_path: Path) -> None:
    folders = [tmp_path / "tiny" / str(number) for number in range(4)]
    for folder in folders:
        journal = Journal(folder / "journal.jsonl")
        started(journal)
        journal.close()
    processes = [ForkedPython(ESPER, "sync", str(folder), cwd=tmp_path) for folder in folders]
    printed = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, printed
    names = Counter(run.info.run_name for run in client(tmp_path).search_runs(["1"]))
    assert names == Counter(map(str, range(4)))


@pytest.mark.long
def test_a_database_that_a_killed_process_made_a_part_of_is_made_anew(tmp_path: Path) -> None:
    file, part = tmp_path / "mlflow.db", tmp_path / "mlflow.db.new"

    def is_half_made() -> bool:
        with contextlib.suppress(FileNotFoundError):
            return part.stat().st_size > 200_000
        return file.exists()

    making = "import sys; from esper.tracking.mlflow_store import connect; connect(sys.argv[1])"
    process = ForkedPython(making, sqlite_url(file), cwd=tmp_path)
    wait_for(is_half_made)
    process.kill()
    process.communicate()
    assert connect(sqlite_url(file)).get_experiment("0").name == "Default"
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow.db", "mlflow.db.lock"}


def test_the_working_directory_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / """a?b%c#d"e'ü;$x :f"""
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert connect(sqlite_url(folder / "mlflow.db")).get_experiment("0").name == "Default"
    assert [path.name for path in folder.glob("*.db")] == ["mlflow.db"]
