"""`esper sync` on runs that never started, still run, were killed, or lie elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from esper.errors import RunError
from esper.report import run_page, runs
from esper.report.run_record import read_run
from esper.tolaria.run_folder import RunFolder
from esper.tracking import Journal, sync
from tests.tracking.conftest import client, ended, mlflow_run, started, trained

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

# Reports the first half of a journal and is killed before it can note anything.
KILLED_HALFWAY = """
import os, signal, sys
from pathlib import Path
from esper.configs import TrackingConfig
from esper.tracking import MlflowRun, read
run_dir = Path(sys.argv[1])
run = MlflowRun(TrackingConfig(), run_dir=run_dir, outputs_dir=run_dir.parents[1])
events = list(read(run_dir / "journal.jsonl"))
run.ingest(events[: len(events) // 2])
os.kill(os.getpid(), signal.SIGKILL)
"""


def write_run(run_dir: Path, *, is_ended: bool = True) -> Path:
    journal = Journal(run_dir / "journal.jsonl")
    started(journal)
    trained(journal, range(1, 9))
    if is_ended:
        ended(journal)
    journal.close()
    return run_dir


def run_of(outputs: Path, run_dir: Path) -> tuple[Any, Counter[tuple[str, int]]]:
    run, history = mlflow_run(outputs, run_dir), client(outputs).get_metric_history
    return run, Counter((key, one.step) for key in run.data.metrics for one in history(run.info.run_id, key))


def test_a_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no journal\.jsonl in it; name a run's folder"):
        sync.main([tmp_path], None)


def test_a_folder_of_runs_is_one_line_a_run(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_run(outputs / "many" / name) for name in ("a", "b")]
    (outputs / "many" / "c").mkdir()
    (outputs / "many" / "c" / "journal.jsonl").touch()
    assert sync.main([outputs / "many"], f"sqlite:///{outputs / 'mlflow.db'}") == 0
    lines = [line.removeprefix(str(outputs / "many")) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "/a: MLflow: finished, 91 new points",
        "/b: MLflow: finished, 91 new points",
        "/c: nothing to report: it never started",
        ": parent of 2 runs in MLflow",
    ]
    assert [run_of(outputs, run)[0].info.status for run in runs] == ["FINISHED", "FINISHED"]


def test_one_run_that_cannot_be_reported_does_not_keep_the_others_back(
    outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(outputs / "mixed" / "good")
    (outputs / "mixed" / "bad").mkdir()
    (outputs / "mixed" / "bad" / "journal.jsonl").write_text("nonsense\n")
    assert sync.main([outputs / "mixed"], f"sqlite:///{outputs / 'mlflow.db'}") == 1
    bad, good = capsys.readouterr().out.splitlines()
    assert "bad: failed: " in bad
    assert "line 1 is damaged: Invalid JSON" in bad
    assert good.endswith("good: MLflow: finished, 91 new points")


def test_a_run_whose_process_holds_the_lock_stays_running(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = write_run(outputs / "tiny" / "alive", is_ended=False)
    with FileLock(run_dir / ".lock"):
        sync.main([run_dir], None)
    assert capsys.readouterr().out == f"{run_dir}: MLflow: still running, 68 new points\n"
    assert run_of(outputs, run_dir)[0].info.status == "RUNNING"
    sync.main([run_dir], None)
    assert run_of(outputs, run_dir)[0].info.status == "KILLED"


def test_what_a_killed_process_had_reported_is_not_reported_again(outputs: Path) -> None:
    run_dir = write_run(outputs / "tiny" / "killed", is_ended=False)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", KILLED_HALFWAY, str(run_dir)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    run, half = run_of(outputs, run_dir)
    assert run.info.status == "RUNNING"
    sync.main([run_dir], None)
    run, points = run_of(outputs, run_dir)
    assert run.info.status == "KILLED"
    assert 0 < half.total() < points.total() == 68
    assert set(points.values()) == {1}


def test_a_run_killed_after_it_resumed_is_killed_for_every_reader(
    outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep_dir = outputs / "resumed"
    run_dir = write_run(sweep_dir / "run", is_ended=False)
    journal = Journal(run_dir / "journal.jsonl")
    ended(journal, "interrupted", reason="SIGTERM")
    started(journal, resumed_from="step-00000008", step=8)
    journal.close()
    folder = RunFolder(run_dir)
    folder.acquire()
    folder.set_status("running")
    folder.release()
    assert read_run(run_dir).status == "killed"
    assert "The run was killed: last seen " in run_page.write(run_dir).read_text()
    (compared,) = runs.from_folders([sweep_dir])
    assert (compared.status, compared.reason[:9]) == ("killed", "last seen")
    assert sync.main([sweep_dir], f"sqlite:///{outputs / 'mlflow.db'}") == 0
    assert "run: MLflow: killed, " in capsys.readouterr().out
    assert run_of(outputs, run_dir)[0].info.status == "KILLED"
