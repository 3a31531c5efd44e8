"""One run in the real W&B, offline: given its journal piece by piece, twice, after a kill, or by two at once."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from esper.configs import TrackingConfig
from esper.errors import RunError
from esper.tracking import Journal, WandbRun, read, sync
from tests.tracking.conftest import ended, grew, started, trained
from tests.tracking.wandb_files import records, rows, segments

# Reports the first half of a journal and is killed.
KILLED_HALFWAY = """
import os, signal, sys
from pathlib import Path
from esper.configs import TrackingConfig
from esper.tracking import WandbRun, read
run_dir = Path(sys.argv[1])
run = WandbRun(TrackingConfig(), run_dir=run_dir)
events = list(read(run_dir / "journal.jsonl"))
run.ingest(events[: len(events) // 2])
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")


def report(journal: Journal, *, finish: bool = False) -> int:
    """Tell W&B the whole journal, as a process does that has just begun; returns how many points were new."""
    with contextlib.closing(WandbRun(TrackingConfig(), run_dir=journal.path.parent)) as run:
        run.ingest(read(journal.path))
        if finish:
            run.finish()
        return run.num_logged


def curve(journal: Journal, key: str) -> list[tuple[int, Any]]:
    """Step and value of every point of a curve, in the order in which W&B got them."""
    all_rows = [row for file in segments(journal.path.parent) for row in rows(file)]
    return [(row["_step"], row[key]) for row in all_rows if key in row]


def of_kind(file: Path, kind: str) -> list[Any]:
    return [getattr(record, kind) for record in records(file) if record.WhichOneof("record_type") == kind]


def test_a_row_has_what_was_measured_at_one_optimizer_step(journal: Journal) -> None:
    started(journal)
    trained(journal, range(1, 9))
    ended(journal)
    report(journal, finish=True)
    (file,) = segments(journal.path.parent)
    assert [row["_step"] for row in rows(file)] == list(range(9))
    last = rows(file)[-1]
    assert (last["train/loss"], last["val/loss"], last["test/accuracy"]) == (0.125, 0.7, 0.7)
    assert (last["epoch"], last["epoch/val_loss"]) == (2, 0.7)


def test_the_run_says_where_it_belongs_and_how_it_was_made(journal: Journal) -> None:
    started(journal, tracking=TrackingConfig(uri="http://me:s3cret@host"))
    ended(journal)
    report(journal, finish=True)
    (file,) = segments(journal.path.parent)
    (run,) = of_kind(file, "run")
    assert (run.project, run.run_group, run.display_name) == ("esper-morphogenetic", "tiny", "run")
    assert list(run.tags) == ["quick", "small"]
    assert '"learning_rate"' in next(one.value_json for one in run.config.update if one.key == "optimization")
    assert b"s3cret" not in b"".join(record.SerializeToString() for record in records(file))


def test_a_redone_step_is_not_logged_twice_and_what_a_cut_step_lacked_is_logged(journal: Journal) -> None:
    started(journal)
    trained(journal, range(1, 4))
    offset = journal.sync()
    trained(journal, range(4, 7))
    report(journal)
    journal.rewind(offset)
    started(journal, resumed_from="checkpoints/step-00000003", step=3)
    trained(journal, range(4, 9), loss=5.0)
    ended(journal)
    report(journal, finish=True)
    assert [step for step, _ in curve(journal, "train/loss")] == list(range(1, 9))
    assert [step for step, _ in curve(journal, "epoch/val_loss")] == [4, 8]
    assert len({file.stem for file in segments(journal.path.parent)}) == 1  # the same run id


def test_the_last_step_waits_until_no_more_can_come_of_it(journal: Journal) -> None:
    started(journal)
    trained(journal, range(1, 4))
    ended(journal, "interrupted", reason="SIGTERM", step=3)
    report(journal, finish=True)
    assert [step for step, _ in curve(journal, "train/loss")] == [1, 2]
    started(journal, resumed_from="checkpoints/step-00000003", step=3)
    trained(journal, range(4, 9))
    ended(journal)
    report(journal, finish=True)
    assert [step for step, _ in curve(journal, "train/loss")] == list(range(1, 9))


def test_what_a_killed_process_had_reported_is_not_reported_again(journal: Journal) -> None:
    started(journal)
    trained(journal, range(1, 201))
    ended(journal, step=200)
    # W&B would have it use the service of this process, which goes on.
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
    code = [sys.executable, "-c", KILLED_HALFWAY, str(journal.path.parent)]
    assert subprocess.run(code, env=environment, check=False).returncode == -signal.SIGKILL
    report(journal, finish=True)
    steps = Counter(step for step, _ in curve(journal, "train/loss"))
    assert len(segments(journal.path.parent)) == 2
    assert set(steps.values()) == {1}


def test_a_run_that_was_reported_is_left_alone(journal: Journal, capsys: pytest.CaptureFixture[str]) -> None:
    started(journal, tracking=TrackingConfig(name="wandb"))
    trained(journal, range(1, 9))
    ended(journal)
    run_dir = journal.path.parent
    assert sync.main([run_dir], None) == 0
    assert sync.main([run_dir], None) == 0
    outcomes = [line.removeprefix(f"{run_dir}: W&B: ") for line in capsys.readouterr().out.splitlines()]
    assert outcomes == ["finished, 91 new points", "finished, 0 new points"]
    assert len(segments(run_dir)) == 1


def test_growth_is_told_in_the_summary_and_the_report_goes_along(journal: Journal) -> None:
    started(journal)
    grew(journal, step=4, graft_id=1, num_parameters=120, kept=True)
    (journal.path.parent / "report.html").write_text("a page")
    ended(journal)
    report(journal, finish=True)
    (file,) = segments(journal.path.parent)
    growth = {one.key: one.value_json for summary in of_kind(file, "summary") for one in summary.update if one.key}
    assert "conv1x1 at layer1.0:beside, step 4: kept" in growth["growth.1"]
    assert (file.parent / "files" / "report.html").read_text() == "a page"


def test_only_one_at_a_time_reports_a_run(journal: Journal) -> None:
    started(journal)
    trained(journal, range(1, 4))
    with contextlib.closing(WandbRun(TrackingConfig(), run_dir=journal.path.parent)) as run:
        run.ingest(read(journal.path))
        with pytest.raises(RunError, match="is being reported by another process"):
            report(journal)


def test_project_and_entity_are_those_of_the_configuration(journal: Journal) -> None:
    started(journal)
    trained(journal, range(1, 4))
    ended(journal)
    config = dataclasses.replace(TrackingConfig(), wandb_project="mine", wandb_entity="us")
    with contextlib.closing(WandbRun(config, run_dir=journal.path.parent)) as run:
        run.ingest(read(journal.path))
        run.finish()
    (file,) = segments(journal.path.parent)
    (record,) = of_kind(file, "run")
    assert (record.project, record.entity) == ("mine", "us")
