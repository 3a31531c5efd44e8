from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from esper.errors import ConfigError, DataError, RunError
from esper.launch.run import _last_words, run
from esper.tolaria import TolariaService
from esper.tolaria.loop import TrainingLoop
from esper.tolaria.run_folder import RunFolder
from tests.conftest import tiny_config


def test_a_run_that_loses_the_race_for_its_folder_leaves_it_to_the_winner(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    winner = RunFolder(run_dir)
    initialize = TrainingLoop.initialize

    def overtaken(loop: TrainingLoop) -> None:
        winner.acquire()  # the other process gets there first; it is still loading its data
        initialize(loop)

    monkeypatch.setattr(TrainingLoop, "initialize", overtaken)
    with pytest.raises(RunError, match="in use by another"):
        run(tiny_config(), run_dir)
    assert run_dir.is_dir()
    winner.release()


def test_input_that_fails_while_building_leaves_nothing_behind(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="batch_size"):
        run(tiny_config(dataset__batch_size=5000, logging__log_dir=str(tmp_path / "logs")), run_dir)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("made", ["work", "work/out"])  # by the user; by Hydra too
def test_a_refused_run_leaves_the_users_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: str) -> None:
    (tmp_path / made).mkdir(parents=True)
    for cwd, run_dir in ((tmp_path / "work", Path("out")), (tmp_path.parent, tmp_path / "work" / "new" / "out")):
        monkeypatch.chdir(cwd)
        with pytest.raises(DataError, match="batch_size"):
            run(tiny_config(dataset__batch_size=5000), run_dir)
        assert [path.name for path in tmp_path.rglob("*")] == ["work"]


def test_a_finished_run_shows_its_result_and_trains_again_only_from_its_own_checkpoint(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(tiny_config(), run_dir)
    lines = (run_dir / "journal.jsonl").read_text()
    capsys.readouterr()
    again = run(tiny_config(), run_dir)
    assert again == first
    assert (run_dir / "journal.jsonl").read_text() == lines
    shown = " ".join(capsys.readouterr().out.split())
    ended = json.loads(lines.splitlines()[-1])["time_unix_s"]
    assert f"finished before, on {datetime.fromtimestamp(ended):%Y-%m-%d at %H:%M}: test accuracy" in shown
    assert "fresh=true" in shown
    older = run_dir / "checkpoints" / "step-00000012"
    back = run(tiny_config(checkpoint__resume_from=str(older)), run_dir)
    assert back.result is not None
    assert first.result is not None
    assert back.result["test_loss"] == first.result["test_loss"]
    started = [json.loads(line) for line in (run_dir / "journal.jsonl").read_text().splitlines()]
    assert [line["step"] for line in started if line["kind"] == "run_started"] == [0, 12]


def test_a_finished_run_whose_journal_is_missing_is_refused_with_its_remedy(run_dir: Path) -> None:
    run(tiny_config(), run_dir)
    (run_dir / "journal.jsonl").unlink()
    with pytest.raises(RunError, match=r"journal\.jsonl is missing, .*; restore it, or train anew with fresh=true"):
        run(tiny_config(), run_dir)
    assert run(tiny_config(fresh=True), run_dir).result is not None


def test_a_process_that_hangs_before_its_run_began_reports_that_without_a_folder_too(run_dir: Path) -> None:
    assert _last_words(TolariaService(tiny_config(), run_dir=run_dir), run_dir, "failed", "it hangs")


def test_fresh_moves_the_old_run_aside(run_dir: Path) -> None:
    run(tiny_config(optimization__max_epochs=1), run_dir)
    run(tiny_config(optimization__max_epochs=1, fresh=True), run_dir)
    assert (run_dir.with_name("run.old1") / "journal.jsonl").exists()


def test_a_dry_run_takes_the_first_site_that_something_fits(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tiny_config(dry_run=True, morphogenetic__blueprint_categories=["attention"]), run_dir)
    assert "growth     spatial_self_attention at layer1.0:after" in capsys.readouterr().out
    assert not run_dir.exists()


@pytest.mark.parametrize(
    ("blueprint", "message"),
    [
        ("basic_blok", r"morphogenetic.blueprint: .*did you mean basic_block\?"),
        ("group_norm", r"no allowed blueprint fits any site"),
    ],
)
def test_a_blueprint_that_can_never_grow_is_refused(run_dir: Path, blueprint: str, message: str) -> None:
    allowed = {"morphogenetic__blueprint_categories": ["residual", "attention"]}
    with pytest.raises(ConfigError, match=message):
        run(tiny_config(morphogenetic__blueprint=blueprint, **allowed), run_dir)
    assert not run_dir.exists()
