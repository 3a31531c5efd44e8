"""A folder given by hand that holds a run of other settings is neither shown nor continued."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from esper import fit
from esper.errors import RunError
from tests.forked import ESPER_TRAIN, run

DEBUG = ("experiment=debug", "debug_mode=false", "morphogenetic=off", "tracking=none", "device=cpu")
STATUSES = ("finished", "interrupted", "failed")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which `out` holds a finished run of two epochs."""
    folder = tmp_path_factory.mktemp("same_run")
    fit(*DEBUG, run_dir=folder / "out")
    return folder


@pytest.fixture
def here(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def set_status(run_dir: Path, status: str) -> None:
    """As a run that ended so in the middle: without its last checkpoint."""
    recorded = json.loads((run_dir / "status.json").read_text())
    (run_dir / "status.json").write_text(json.dumps({**recorded, "status": status, "result": None}))
    shutil.rmtree(max((run_dir / "checkpoints").glob("step-*")))


def change_config(run_dir: Path, group: str, **values: object) -> None:
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    config[group].update(values)
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.parametrize("status", STATUSES)
def test_the_command_names_what_differs_and_the_ways_out_and_touches_nothing(here: Path, status: str) -> None:
    if status != "finished":
        set_status(here / "out", status)
    before = contents(here)
    other = ("optimization.max_epochs=4", "rng_seed=5", "model.widths=[8,16]", "optimization.warmup_epochs=1.5")
    done = run(ESPER_TRAIN, *DEBUG, *other, "dataset.batch_size=16", "hydra.run.dir=out", cwd=here)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert f"{here / 'out'} holds a run of other settings: " in done.stderr
    for shown in ("model.widths: [4,8] → [8,16]", "optimization.max_epochs: 2 → 4", "and 1 more", "fresh=true"):
        assert shown in done.stderr
    assert "to train it further, use another folder with checkpoint.resume_from=" in done.stderr
    assert contents(here) == before


@pytest.mark.parametrize("status", STATUSES)
def test_the_same_settings_are_the_same_run_whatever_the_operational_ones_are(here: Path, status: str) -> None:
    if status != "finished":
        set_status(here / "out", status)
    result = fit(*DEBUG, "description=again", "logging.log_interval=1", "dataset.num_workers=0", run_dir="out").result
    assert result is not None
    assert result["epochs"] == 2


def test_fresh_and_another_folder_and_resume_from_are_ways_out(here: Path) -> None:
    other = (*DEBUG, "optimization.max_epochs=3")
    newest = max((here / "out" / "checkpoints").glob("step-*"))
    for more, run_dir, resumed in (
        ((f"checkpoint.resume_from={newest}",), "further", str(newest)),
        (("fresh=true",), "out", None),
    ):
        outcome = fit(*other, *more, run_dir=run_dir)
        first = json.loads((here / run_dir / "journal.jsonl").read_text().splitlines()[0])
        assert outcome.result is not None
        assert (outcome.result["epochs"], first["resumed_from"]) == (3, resumed)
    assert (here / "out.old1" / "status.json").exists()


def test_its_own_checkpoint_does_not_continue_a_run_under_other_settings(here: Path) -> None:
    oldest = min((here / "out" / "checkpoints").glob("step-*"))
    with pytest.raises(RunError, match=r"optimization\.max_epochs: 2 → 5"):
        fit(*DEBUG, "optimization.max_epochs=5", f"checkpoint.resume_from={oldest}", run_dir="out")


def test_an_older_run_has_the_neutral_value_of_settings_it_did_not_know(here: Path) -> None:
    recorded = yaml.safe_load((here / "out" / "config.yaml").read_text())
    for group, name in (("optimization", "max_macs"), ("morphogenetic", "schedule_by"), ("model", "init_from")):
        del recorded[group][name]
    (here / "out" / "config.yaml").write_text(yaml.safe_dump(recorded))
    assert fit(*DEBUG, run_dir="out").result is not None
    with pytest.raises(RunError, match=r"optimization\.max_macs: null → 30000000;"):
        fit(*DEBUG, "optimization.max_macs=3e7", run_dir="out")


def test_checkpoints_of_a_run_of_other_settings_in_checkpoint_dir_are_not_taken(here: Path) -> None:
    shared = "checkpoint.checkpoint_dir=shared"
    fit(*DEBUG, shared, run_dir="a/run")
    message = r"shared/run holds the checkpoints of other settings: rng_seed: 0 → 3; give the same settings, another ch"
    with pytest.raises(RunError, match=message):
        fit(*DEBUG, shared, "rng_seed=3", run_dir="b/run")
    assert not (here / "b").exists()
    (here / "shared" / "run" / "config.yaml").unlink()  # of a version that wrote none there
    with pytest.raises(RunError, match="holds the checkpoints of a run of other settings, which has no"):
        fit(*DEBUG, shared, "rng_seed=3", run_dir="b/run")
    assert not (here / "b").exists()
    fit(*DEBUG, shared, "rng_seed=3", "fresh=true", run_dir="b/run")
    assert list((here / "shared" / "run" / "abandoned").iterdir())


def test_members_of_a_sweep_in_one_folder_after_the_other_are_refused(here: Path) -> None:
    sweep = ("-m", *DEBUG, "hydra.sweep.dir=.", "hydra.sweep.subdir=out", "rng_seed=0,1")
    done = run(ESPER_TRAIN, *sweep, cwd=here)
    assert done.returncode == 2
    assert re.search(r"^error: .*rng_seed=1: .*out holds a run of other settings: rng_seed: 0 → 1;", done.stderr)


@pytest.mark.parametrize("dry_run", ["true", "false"])
def test_a_member_of_a_sweep_lies_in_the_folder_of_its_number(here: Path, dry_run: str) -> None:
    shutil.move(here / "out", here / "many" / "0")
    sweep = ("-m", *DEBUG, "hydra.sweep.dir=many", "hydra.sweep.subdir=${hydra.job.num}", f"dry_run={dry_run}")
    done = run(ESPER_TRAIN, *sweep, cwd=here)
    assert done.returncode == 0, done.stderr
    assert (str(here / "many" / "0" / "checkpoints") in done.stdout) is (dry_run == "false")
    assert [path.parent.name for path in (here / "many").glob("*/journal.jsonl")] == ["0"]


@pytest.mark.parametrize("content", ["", "just text", "a: [", "\x00\x01", "since: 2026-01-01\n"])
def test_a_config_that_is_not_a_runs_is_left_alone(here: Path, content: str) -> None:
    (here / "project").mkdir()
    (here / "project" / "config.yaml").write_text(content)
    with pytest.raises(
        RunError, match=r"project(/config\.yaml is not the configuration of a run| holds a run of other)"
    ):
        fit(*DEBUG, run_dir="project")
    assert contents(here / "project") == {"config.yaml": content.encode()}


def test_a_result_without_its_settings_is_not_shown(here: Path) -> None:
    (here / "out" / "config.yaml").unlink()
    assert fit(*DEBUG, run_dir="out").result is not None  # the journal has them too
    with pytest.raises(RunError, match=r"out holds a run of other settings: rng_seed: 0 → 3"):
        fit(*DEBUG, "rng_seed=3", run_dir="out")
    (here / "out" / "journal.jsonl").unlink()
    with pytest.raises(RunError, match=r"config\.yaml is missing"):
        fit(*DEBUG, run_dir="out")


def test_data_named_relative_or_absolute_is_the_same(here: Path) -> None:
    change_config(here / "out", "dataset", data_dir=str(here / "data"))
    assert fit(*DEBUG, "dataset.data_dir=./data", run_dir="out").result is not None
    with pytest.raises(RunError, match=r"dataset\.data_dir: /.* → \./other;"):
        fit(*DEBUG, "dataset.data_dir=./other", run_dir="out")
