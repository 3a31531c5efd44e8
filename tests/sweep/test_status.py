"""`esper sweep status` of sweeps without jobs: their runs tell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from esper.errors import RunError
from esper.launch.run import run
from esper.sweep import status
from esper.sweep.manifest import all_members
from esper.sweep.member_state import MemberState
from esper.sweep.progress import Progress
from esper.tracking.files import read_members, write_members
from tests.conftest import result_of, tiny_config
from tests.sweep.test_launch import finish, member, start


def ended(run_dir: Path, status: str, **content: object) -> None:
    run_dir.mkdir(parents=True)
    result = result_of() if status == "finished" else None
    (run_dir / "status.json").write_text(json.dumps({"status": status, "reason": "", "result": result, **content}))


def rows(out: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith("rng_seed=")}


def test_each_run_of_a_sweep_without_jobs_has_its_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_members(tmp_path, {f"run-{seed}": ["morphogenetic=off", f"rng_seed={seed}"] for seed in range(4)})
    run(tiny_config(optimization__max_epochs=1, optimization__warmup_epochs=0.0), tmp_path / "run-0")
    ended(tmp_path / "run-1", "failed", reason="no luck")
    ended(tmp_path / "run-2", "interrupted")
    capsys.readouterr()
    assert status.main(tmp_path, watch=False) == 1
    out = capsys.readouterr().out
    shown = rows(out)
    assert shown["rng_seed=0"][:2] == ["finished", "1/1"]
    assert shown["rng_seed=0"][3] == "%"
    assert shown["rng_seed=1"] == ["failed"]
    assert shown["rng_seed=2"] == ["interrupted"]
    assert shown["rng_seed=3"] == ["not", "started"]
    assert "failed rng_seed=1: no luck" in out


@pytest.mark.parametrize(("state", "epochs"), [("finished", "8/8"), ("running", "8/13"), ("failed", "8/13")])
def test_a_run_that_finished_before_its_last_planned_epoch_is_at_its_end(state: str, epochs: str) -> None:
    progress = Progress(journal=Path("absent"), epoch=8, total_epochs=13)
    assert status._progress_cells(MemberState(state=state), progress)[0] == epochs


def test_a_sweep_whose_process_is_gone_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_members(tmp_path, {"a": ["rng_seed=1"], "b": ["rng_seed=2"]})
    ended(tmp_path / "a", "finished")
    monkeypatch.setattr(status, "_QUIET_S", 0.02)
    assert status.main(tmp_path, watch=True, interval_s=0.01) == 0
    assert "1 finished, 1 not started" in capsys.readouterr().out


def test_runs_with_and_without_jobs_are_members_of_one_sweep(tmp_path: Path) -> None:
    with_job = member(tmp_path, "a", "rng_seed=1")
    write_members(tmp_path, {"a": ["rng_seed=1"], "b": ["rng_seed=2"]})
    assert [(one.name, one.has_job) for one in all_members(tmp_path)] == [("a", True), ("b", False)]
    assert all_members(tmp_path)[0] == with_job


def test_a_sweep_that_searches_has_the_runs_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no sweep was launched there with -m"):
        all_members(tmp_path)
    (tmp_path / "multirun.yaml").touch()
    ended(tmp_path / "a", "finished")
    (tmp_path / "a" / "journal.jsonl").touch()
    assert [one.name for one in all_members(tmp_path)] == ["a"]


def test_runs_that_a_search_adds_are_watched_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "multirun.yaml").touch()
    waits = list[float]()

    def add(name: str) -> None:
        ended(tmp_path / name, "finished")
        (tmp_path / name / "journal.jsonl").touch()

    def add_later(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            add("second")

    add("first")
    monkeypatch.setattr(status.time, "sleep", add_later)
    assert status.main(tmp_path, watch=True, interval_s=20.0) == 0
    assert len(waits) == 3  # a minute without a run
    assert "2 runs: 2 finished" in capsys.readouterr().out


@pytest.mark.long
def test_a_sweep_whose_folders_are_numbered_is_found_by_them(tmp_path: Path) -> None:
    overrides = ["experiment=debug", "debug_mode=false", "morphogenetic=off", "optimization.learning_rate=0.05,0.01"]
    code, out, err = finish(start("-m", *overrides, "hydra.sweep.subdir=${hydra.job.num}", cwd=tmp_path))
    assert code == 0, err
    assert "comparison.html" in out
    assert list(read_members(tmp_path / "outputs" / "debug")) == ["0", "1"]
    assert status.main(tmp_path / "outputs" / "debug", watch=False) == 0
