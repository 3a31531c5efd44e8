"""`esper plan` as a user runs it: interrupted, repeated, followed, checked; and what it refuses."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from esper import fit
from esper.cli import main
from esper.contracts.events import Event, RunStarted
from esper.errors import ConfigError
from esper.planning.family import read_family, require_plannable
from esper.planning.observed import finished_runs
from esper.tracking import Journal
from tests.conftest import STACK, journal_of, tiny_config

TOY = (
    "model=resnet_small",
    "model.widths=[4,8]",
    "model.depths=[2,2]",
    "model.target_layers=[layer1,layer2]",
    "dataset=synthetic",
    "dataset.image_size=8",
    "dataset.num_examples=320",
    "dataset.batch_size=32",
    "dataset.val_split=0.4",
    "optimization.learning_rate=0.05",
    "optimization.warmup_epochs=0.25",
    "morphogenetic.newborn_warmup_steps=2",
    "tracking=none",
    "device=cpu",
    "experiment_name=toy",
)
FOLDER = Path("outputs/toy")
PLAN = ("--epochs", "9.2", "--pilot-share", "0.5", "--sizes", "none")
"""Half of 9.2 epochs of the final network for pilots: one seed of host and final network, one network that grows."""


def esper(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def runs() -> list[Path]:
    return sorted(path.parent for path in FOLDER.glob("*/status.json"))


def status(run_dir: Path) -> dict[str, Any]:
    content = json.loads((run_dir / "status.json").read_text())
    assert isinstance(content, dict)
    return content


def started(run_dir: Path) -> dict[str, Any]:
    """The first time that a run started."""
    return journal_of(run_dir, "run_started")[0]


def interrupt_in_run(number: int, patch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C when so many runs have begun from now on; another thread might see it too late."""
    write, numbers = Journal.write, itertools.count(1)

    def write_and_interrupt(journal: Journal, event: Event) -> None:
        write(journal, event)
        if event.kind == RunStarted.kind and next(numbers) == number:
            os.kill(os.getpid(), signal.SIGINT)

    patch.setattr(Journal, "write", write_and_interrupt)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a run of before, and a plan that was interrupted in its third pilot and begun again."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("plan")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fit(*TOY, "morphogenetic=off", "optimization.max_epochs=2", "rng_seed=5")
        interrupt_in_run(3, patch)
        assert esper("plan", *TOY, *PLAN) == 130
        assert not (FOLDER / "plan.json").exists()
        finished = {run: (run / "journal.jsonl").stat().st_mtime_ns for run in runs() if is_finished(run)}
        assert 1 < len(finished) < 4
        assert esper("plan", *TOY, *PLAN, "--json") == 0
        assert {run: (run / "journal.jsonl").stat().st_mtime_ns for run in finished} == finished
    return folder


def is_finished(run_dir: Path) -> bool:
    return bool(status(run_dir)["status"] == "finished")


@pytest.fixture
def plan(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(workspace)
    content = json.loads((FOLDER / "plan.json").read_text())
    assert isinstance(content, dict)
    return content


@pytest.mark.long
def test_pilots_are_ordinary_runs_of_one_trunk_each_within_their_share(plan: dict[str, Any]) -> None:
    assert all(map(is_finished, runs()))
    pilots = [one for one in plan["observations"] if one["is_pilot"]]
    assert sorted((one["size"], one["host_macs"] > 0) for one in pilots) == [
        ("final", False), ("final", False), ("final", True), *[("host", False)] * 3
    ]  # fmt: skip
    began = [started(FOLDER / one["run"])["resumed_from"] for one in pilots]
    assert sum(path is not None and "/trunk-" in path for path in began) == 4
    question = plan["plan"]["question"]
    assert 0.7 < question["pilot_macs"] / (0.5 * question["macs"]) < 1.05  # the ends of runs are whole steps
    assert question["pilot_macs"] < 0.8 * sum(one["macs"] for one in pilots)


@pytest.mark.long
def test_finished_runs_of_the_same_recipe_are_observations_others_are_not(plan: dict[str, Any]) -> None:
    (other,) = [one for one in plan["observations"] if not one["is_pilot"]]
    assert (other["size"], other["seed"], other["host_macs"]) == ("host", 5, 0)
    assert other["loss"] == status(FOLDER / other["run"])["result"]["val_loss"]
    known, copied = read_family(TOY, fractions=[]), FOLDER / "copied"
    for change, is_read in (("rng_seed: 5", True), ("learning_rate: 0.06", False), ("batch_size: 64", False)):
        shutil.copytree(FOLDER / other["run"], copied)
        key, _, _ = change.partition(":")
        settings = re.sub(rf"\b{key}: .*", change, (copied / "config.yaml").read_text())
        (copied / "config.yaml").write_text(settings)
        assert (copied in [run.run_dir for run in finished_runs(known)]) == is_read
        shutil.rmtree(copied)
    for name in ("val_loss", "val_accuracy"):  # what was not finite
        shutil.copytree(FOLDER / other["run"], copied)
        content = status(copied)
        content["result"][name] = None
        (copied / "status.json").write_text(json.dumps(content))
        assert copied not in [run.run_dir for run in finished_runs(known)]
        shutil.rmtree(copied)


@pytest.mark.long
def test_the_recommended_run_goes_on_from_a_trunk_and_is_checked(
    plan: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    assert esper("plan", "--check", str(FOLDER)) == 2
    assert "no run of this plan has finished since" in capfd.readouterr().err
    command = shlex.split(plan["command"])
    assert command[0] == "esper-train"
    outcome = fit(*command[1:])
    assert outcome.result is not None
    assert outcome.result["total_macs"] == pytest.approx(plan["decision"]["max_macs"], rel=0.02)
    began = Path(started(outcome.run_dir)["resumed_from"])
    assert began.resolve() == (FOLDER / plan["decision"]["trunk"]).resolve()
    assert esper("plan", "--check", str(FOLDER)) == 0
    assert re.search(r"(1 of 1 runs lie inside .* \(100 %\)|0 of 1 runs lie inside .* \(0 %\))", capfd.readouterr().out)


@pytest.mark.long
def test_a_run_of_a_size_that_the_plan_says_nothing_about_is_not_checked(
    plan: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    other, (recipe,) = Path("outputs/other"), FOLDER.glob("final-*.json")
    other.mkdir()
    (other / "plan.json").write_text(json.dumps(plan | {"fractions": [0.5]}))
    between = ("morphogenetic=replay", f"morphogenetic.recipe_path={recipe}", "morphogenetic.recipe_fraction=0.5")
    fit(*TOY[:-1], "experiment_name=other", *between, "optimization.max_epochs=1")
    assert esper("plan", "--check", str(other)) == 2
    assert "no run of this plan has finished since" in capfd.readouterr().err


@pytest.mark.long
def test_a_policy_is_learned_from_a_plan_and_its_outcomes_and_one_that_is_off_is_named_and_not_used(
    plan: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    learned, folder = Path("outputs/learned"), Path("outputs/policy.json")
    shutil.copytree(FOLDER, learned)
    (recipe,) = learned.glob("final-*.json")
    given = (
        *TOY[:-1],
        "experiment_name=learned",
        "rng_seed=7",
        f"optimization.max_macs={plan['decision']['max_macs']}",
    )
    simic = ("simic", str(learned), "--out", str(folder))
    fit(*given, "morphogenetic=off")
    fit(*given, "morphogenetic=replay", f"morphogenetic.recipe_path={recipe}")
    assert esper(*simic) == 2
    assert "no plan has outcomes to learn from" in capfd.readouterr().err
    fit(*given, "morphogenetic=stack")
    assert esper(*simic) == 0
    assert (
        "policy.json is off: it takes the outcomes of 12 plans from 4 families; there are 1 from 1"
        in capfd.readouterr().out
    )
    assert esper("plan", *TOY, *PLAN, "--experiment", "learned", "--policy", str(folder)) == 0
    shown = capfd.readouterr().out
    assert "policy.json: off: " in shown
    assert "A policy learned" not in shown
    policy = json.loads(folder.read_text()) | {"is_active": True, "bias": 7.0, "num_cells": 12}
    folder.write_text(json.dumps(policy))
    assert esper("plan", *TOY, *PLAN, "--experiment", "learned", "--policy", str(folder), "--json") == 0
    made = json.loads(capfd.readouterr().out)
    assert "A policy learned from 12 earlier plans" in made["plan"]["reason"] + made["plan"]["why"]
    assert made["plan"]["recommended"]["share"] == made["decision"]["share"] is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"morphogenetic__enable_tamiyo": False}, "enable_tamiyo=false: nothing grows, .* add morphogenetic=stack"),
        ({"morphogenetic__policy": "heuristic"}, "morphogenetic.policy=heuristic: .* add morphogenetic=stack"),
        ({"morphogenetic__schedule_at": [0.1, 0.3]}, "schedule_at=.*one growth"),
        ({"morphogenetic__max_added_macs": 0.5}, "max_added_macs=0.5: what will grow is not known"),
        ({"morphogenetic__growth_until": 0.3}, r"growth_until=0.3: .* after schedule_at=\[0.3\]; give a later one"),
        ({"optimization__scheduler": "cosine"}, "scheduler=cosine: .* use wsd"),
        ({"optimization__patience": 3}, "patience=3: early stopping breaks equal budgets"),
        ({"model__init_from": "outputs/run"}, "init_from=.*experiment=more_capacity"),
        ({"comparison__arm": "grown"}, "comparison.arm=grown: .* leave arm= out"),
        ({"fresh": True}, "fresh=true: .* another --experiment"),
    ],
)
def test_settings_that_cannot_be_planned_are_refused(changes: dict[str, Any], message: str) -> None:
    require_plannable(tiny_config(**STACK))
    with pytest.raises(ConfigError, match=message):
        require_plannable(tiny_config(**STACK | changes))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--epochs", "3"), "--epochs=3 at --pilot-share=0.15 leaves 0.45 epochs .*; give --epochs=[0-9.]+$"),
        (("--sizes", "0.5,0.501"), "--sizes=0.501: no other network lies there"),
        (("--sizes", "large"), "--sizes: large: allowed are fractions of what grows"),
        (("--compute", "0"), "--compute: 0: allowed is a number above 0"),
        (("--epochs", "many"), "--epochs: many: allowed is a number above 0"),
        (("--pilot-share", "0.6"), "--pilot-share: 0.6: allowed is above 0, and at most 0.5"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_line_and_leaves_nothing(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert esper("plan", *TOY, *arguments) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "error:" in line]
    assert re.search(message, line)
    assert not FOLDER.exists()


@pytest.mark.parametrize(
    "budget", [("--epochs", "20"), ("--compute", "1e9"), ("--hours", "1e-9"), ("optimization.max_epochs=20",)]
)
def test_each_advice_to_a_budget_that_is_too_small_is_in_its_unit_and_works(
    budget: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # A dry run keeps no speed, and the next one may measure another; without it, nothing is trained either.
    assert esper("plan", *TOY, *budget, *(["dry_run=true"] if budget[0] != "--hours" else [])) == 2
    advice = capfd.readouterr().err.strip().partition("; give ")[2].split(" or ")
    assert advice[0].startswith(budget[0] if budget[0].startswith("--") else "--epochs=")
    assert len(advice) == (1 if budget[0] == "--hours" else 2)
    assert esper("plan", *TOY, advice[0], "dry_run=true") == 0
    for share in advice[1:]:
        assert share.startswith("--pilot-share=")
        assert esper("plan", *TOY, *budget, share, "dry_run=true") == 0


def test_a_dry_run_lists_the_pilots_and_trains_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert esper("plan", *TOY, *PLAN, "dry_run=true") == 0
    assert capfd.readouterr().out.count("seed 0") == 6
    assert esper("plan", *TOY, "--hours", "10", "dry_run=true") == 0  # a few steps show how much that is
    assert capfd.readouterr().out.count("seed 0") > 6
    assert not FOLDER.exists()


def test_a_speed_that_was_noted_is_used_and_a_damaged_note_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    FOLDER.mkdir(parents=True)
    note, hours = FOLDER / "plan_speed.json", ("--hours", "1", "dry_run=true")
    key = read_family(TOY, fractions=(0.5,)).digest
    note.write_text(json.dumps({key: 1e6}))
    assert esper("plan", *TOY, *hours) == 0
    assert "of 3.60 G MACs" in capfd.readouterr().out
    for content in ("", "[1]", json.dumps({key: "fast"}), json.dumps({key: 0})):
        note.write_text(content)
        assert esper("plan", *TOY, *hours) == 2
        told = capfd.readouterr().err
        assert re.search(r"plan_speed\.json is damaged: .*; remove it, and the speed is measured again\n$", told)
