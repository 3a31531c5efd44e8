from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from esper.configs import TolariaConfig
from esper.errors import RunError
from esper.report.run_record import read_run

TIME = {"time_unix_s": 1.0}
STARTED = TIME | {
    "kind": "run_started",
    "step": 0,
    "resumed_from": None,
    "run_name": "r",
    "experiment_name": "e",
    "total_steps": 9,
    "total_epochs": 1,
    "num_parameters": 1,
    "num_macs": 1,
    "num_sites": 0,
    "device": "cpu",
    "config": dataclasses.asdict(TolariaConfig()),
    "environment": {},
}
STEP = TIME | {
    "kind": "step",
    "step": 5,
    "epoch": 0,
    "loss": 0.5,
    "accuracy": 0.5,
    "learning_rate": 0.1,
    "grad_norm": 1.0,
    "images_per_s": 1.0,
    "memory_bytes": 1,
}


def write(run_dir: Path, *events: dict[str, object], torn: str = "") -> None:
    (run_dir / "journal.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + torn)


def test_a_line_that_is_still_being_written_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, STARTED, STEP, torn='{"kind": "step", "st')
    assert read_run(tmp_path).series("step", "loss") == ([5], [0.5])


def test_a_value_that_was_not_finite_is_nan_in_a_series(tmp_path: Path) -> None:
    write(tmp_path, STARTED, STEP | {"loss": None})
    (value,) = read_run(tmp_path).series("step", "loss")[1]
    assert math.isnan(value)


def test_a_run_in_progress_has_the_status_of_its_folder_and_an_ended_one_that_of_its_journal(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text(json.dumps({"status": "running", "reason": ""}))
    write(tmp_path, STARTED)
    assert read_run(tmp_path).status == "running"
    write(
        tmp_path, STARTED, TIME | {"kind": "run_ended", "step": 9, "status": "failed", "reason": "nan", "result": None}
    )
    assert (read_run(tmp_path).status, read_run(tmp_path).reason) == ("failed", "nan")


def test_a_run_that_was_taken_up_again_counts_its_processes(tmp_path: Path) -> None:
    write(tmp_path, STARTED, STARTED | {"step": 5, "resumed_from": "checkpoints/step-5"})
    assert read_run(tmp_path).num_processes == 2


def test_what_is_not_a_journal_is_refused(tmp_path: Path) -> None:
    write(tmp_path, TIME | {"kind": "judgement", "step": 3, "epoch": 1})
    with pytest.raises(RunError, match=r"line 1 is damaged: judgement\.graft_id: Field required"):
        read_run(tmp_path)
