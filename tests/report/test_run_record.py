from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from esper.errors import RunError
from esper.report.run_record import read_run

STARTED = {"kind": "run_started", "step": 0, "resumed_from": None}
STEP = {"kind": "step", "step": 5, "loss": 0.5}


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
    write(tmp_path, STARTED, {"kind": "run_ended", "step": 9, "status": "failed", "reason": "nan", "result": None})
    assert (read_run(tmp_path).status, read_run(tmp_path).reason) == ("failed", "nan")


def test_a_run_that_was_taken_up_again_counts_its_processes(tmp_path: Path) -> None:
    write(tmp_path, STARTED, STARTED | {"step": 5, "resumed_from": "checkpoints/step-5"})
    assert read_run(tmp_path).num_processes == 2


def test_what_is_not_a_journal_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"kind": "judgement", "step": 3})
    with pytest.raises(RunError, match="is not a journal of Esper: an event lacks 'site'"):
        read_run(tmp_path)
