"""The summary of a sweep that has ended, and the metric that its sweeper receives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.forked import ESPER_TRAIN, run

THIN = ["experiment=debug", "debug_mode=false", "experiment_name=rates", "optimization.warmup_epochs=0.5"]
PRINT_METRICS = """
from hydra._internal.hydra import Hydra
multirun = Hydra.multirun
def print_metrics(self, *args, **kwargs):
    batches = multirun(self, *args, **kwargs)
    print("METRICS", [one.return_value for batch in batches for one in batch])
    return batches
Hydra.multirun = print_metrics
"""


@pytest.mark.long
def test_a_sweep_ends_with_a_page_and_a_parent_run_and_its_sweeper_gets_the_validation_accuracy(tmp_path: Path) -> None:
    swept = ["optimization.learning_rate=0.02,0.05", "rng_seed=0,1", "tracking=mlflow"]
    done = run(PRINT_METRICS + ESPER_TRAIN, "-m", *THIN, *swept, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    sweep_dir = tmp_path / "outputs" / "rates"
    assert "\noutputs/rates/comparison.html\n" in done.stdout
    arms = json.loads((sweep_dir / "comparison.json").read_text())["arms"]
    assert {label: arm["seeds"] for label, arm in arms.items()} == {
        "optimization.learning_rate=0.02": [0, 1],
        "optimization.learning_rate=0.05": [0, 1],
    }
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("METRICS")]
    statuses = [json.loads(path.read_text()) for path in sweep_dir.glob("*/status.json")]
    assert sorted(json.loads(line.removeprefix("METRICS "))) == sorted(
        one["result"]["val_accuracy"] for one in statuses
    )
    assert len(json.loads((sweep_dir / "mlflow.json").read_text())["run_ids"]) == 1


def test_a_failed_member_does_not_stop_a_sweep_and_is_left_out_of_its_page(tmp_path: Path) -> None:
    done = run(ESPER_TRAIN, "-m", *THIN, "optimization.learning_rate=1e20,0.05", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert "optimization.learning_rate=1e+20" in last
    sweep_dir = tmp_path / "outputs" / "rates"
    statuses = [json.loads(path.read_text())["status"] for path in sweep_dir.glob("*/status.json")]
    assert sorted(status == "finished" for status in statuses) == [False, True]
    page = json.loads((sweep_dir / "comparison.json").read_text())
    assert (len(page["arms"]), len(page["left_out"])) == (1, 1)


@pytest.mark.long
def test_a_dry_run_of_a_sweep_leaves_nothing_behind(tmp_path: Path) -> None:
    done = run(ESPER_TRAIN, "-m", *THIN, "rng_seed=0,1", "dry_run=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_slurm_jobs_only_write_journals_and_the_summary_reports_them(tmp_path: Path) -> None:
    done = run(ESPER_TRAIN, "-m", *THIN, "rng_seed=0,1", "tracking=mlflow", cwd=tmp_path, SLURM_JOB_ID="7")
    assert done.returncode == 0, done.stderr
    notices = [line for line in done.stdout.splitlines() if "SLURM jobs do not log to sqlite:///" in line]
    assert len(notices) == 2
    assert len([line for line in done.stdout.splitlines() if ": MLflow: finished, " in line]) == 2
    assert (tmp_path / "outputs" / "rates" / "mlflow.json").is_file()
