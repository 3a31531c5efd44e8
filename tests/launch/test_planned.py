"""morphogenetic=planned: a run does what its plan decided, says why, and keeps to it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from esper import fit
from esper.configs import load_config
from esper.configs.compose import compose
from esper.configs.identity import family
from esper.configs.load import from_hydra
from esper.errors import ConfigError
from esper.launch.planned import Decision, resolve_plan
from esper.planning.family import read_family

HOST = (
    "model=resnet_small",
    "model.widths=[4,8]",
    "model.depths=[2,2]",
    "model.target_layers=[layer1,layer2]",
    "dataset=synthetic",
    "dataset.image_size=8",
    "dataset.num_examples=320",
    "dataset.batch_size=32",
    "dataset.val_split=0.4",
    "optimization.warmup_epochs=0.5",
    "tracking=none",
    "device=cpu",
    "experiment_name=planned",
)
PLANNED = (*HOST, "morphogenetic=planned", "morphogenetic.plan_path=outputs/planned/plan.json")
BUDGET = 2e8
"""MACs: 2.3 epochs of the final network."""


def decide(**changes: Any) -> None:
    """Write a plan for HOST."""
    known = read_family(HOST, fractions=None)
    known.write_recipe()
    decision = Decision(
        family=known.digest, overrides=HOST, fraction=1.0, share=0.4, recipe=known.recipe_path.name, max_macs=BUDGET,
        reason="growing at 40 % is expected to end 0.4 points ahead",
    )  # fmt: skip
    content = {"decision": dataclasses.asdict(dataclasses.replace(decision, **changes))}
    Path("outputs/planned/plan.json").write_text(json.dumps(content))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def journal(run_dir: Path) -> list[dict[str, Any]]:
    return list(map(json.loads, (run_dir / "journal.jsonl").read_text().splitlines()))


def test_a_planned_growth_happens_at_its_share_and_the_journal_says_why() -> None:
    decide()
    outcome = fit(*PLANNED)
    assert outcome.result is not None
    assert outcome.result["total_macs"] == pytest.approx(BUDGET, rel=0.03)
    events = journal(outcome.run_dir)
    (first, *_) = [event for event in events if event["kind"] == "surgery"]
    assert 0.4 <= first["step"] * 32 * 3 * first["num_macs_before"] / BUDGET < 0.5
    decided = next(event["decision"] for event in events if event["kind"] == "decision" and event["applied"])
    assert "planned (growing at 40 % is expected to end 0.4 points ahead)" in decided["reasoning"]
    assert any("as planned in" in event.get("message", "") for event in events)


@pytest.mark.long
def test_a_planned_run_goes_on_from_the_trunk_of_a_pilot_and_ends_as_if_trained_at_once() -> None:
    decide()
    pilot = fit(*HOST, "morphogenetic=off", "optimization.max_epochs=1", "checkpoint.save_trunk=true")
    (trunk,) = pilot.run_dir.glob("checkpoints/trunk-*")
    at_once = fit(*PLANNED)
    decide(trunk=f"{pilot.run_dir.name}/checkpoints/{trunk.name}", seed=0)
    outcome = fit(*PLANNED, "fresh=true")
    (began,) = [event["resumed_from"] for event in journal(outcome.run_dir) if event["kind"] == "run_started"]
    assert Path(began).resolve() == trunk.resolve()
    assert any("as planned in" in event.get("message", "") for event in journal(outcome.run_dir))
    assert at_once.result is not None
    assert outcome.result is not None
    same = ("test_loss", "val_loss", "total_macs", "num_macs")
    assert [outcome.result[name] for name in same] == [at_once.result[name] for name in same]
    shutil.rmtree(outcome.run_dir / "checkpoints")  # as if it had been killed before the first
    again = resolve_plan(from_hydra(compose([*PLANNED])), run_dir=outcome.run_dir)
    assert again.checkpoint.resume_from is not None
    assert Path(again.checkpoint.resume_from).resolve() == trunk.resolve()
    for other in ("rng_seed=1", f"optimization.max_macs={BUDGET / 2}"):  # trains something else than the pilot did
        config = resolve_plan(from_hydra(compose([*PLANNED, other])), run_dir=Path("new"))
        assert config.checkpoint.resume_from is None


def test_a_planned_size_in_between_is_trained_from_scratch() -> None:
    decide(share=None, fraction=0.5, max_macs=BUDGET / 3)
    outcome = fit(*PLANNED)
    assert outcome.result is not None
    assert 1.4 < outcome.result["num_macs"] / outcome.result["num_macs_before"] < 1.6
    assert {event["step"] for event in journal(outcome.run_dir) if event["kind"] == "surgery"} <= {0}
    assert outcome.result["total_macs"] == pytest.approx(BUDGET / 3, rel=0.05)


def test_a_run_keeps_the_decision_that_it_began_with() -> None:
    decide(share=None, fraction=0.0, max_macs=BUDGET / 4)
    first = fit(*PLANNED)
    decide(share=None, fraction=1.0, max_macs=BUDGET)
    again = fit(*PLANNED)
    assert (again.run_dir, again.result) == (first.run_dir, first.result)
    assert load_config(first.run_dir / "config.yaml").morphogenetic.enable_tamiyo is False
    anew = fit(*PLANNED, "fresh=true")
    assert anew.run_dir == first.run_dir
    assert anew.result is not None
    assert anew.result["total_macs"] > 3 * BUDGET / 4


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("optimization.learning_rate=0.2", r"plan.json: was made for another host, recipe or dataset \(model=resnet_"),
        ("model.widths=[8,8]", "was made for another host"),
        ("morphogenetic.plan_path=nothing.json", "plan_path=.*nothing.json: policy=planned needs a plan"),
        ("morphogenetic=stack", r"plan_path=.*: read with morphogenetic=planned only, not with policy=stack"),
    ],
)
def test_what_is_no_plan_of_this_family_is_refused(changed: str, message: str) -> None:
    decide()
    given = [one for one in PLANNED if one.partition("=")[0] != changed.partition("=")[0]]
    with pytest.raises(ConfigError, match=message):
        fit(*given, changed)
    assert not [path for path in Path("outputs/planned").iterdir() if path.is_dir()]


def test_a_damaged_plan_is_refused() -> None:
    Path("plan.json").write_text('{"decision": {}}')
    with pytest.raises(ConfigError, match=r"plan.json.*give the plan.json that esper plan wrote"):
        fit(*HOST, "morphogenetic=planned", "morphogenetic.plan_path=plan.json")


def test_a_family_is_what_differs_only_in_size_growth_budget_and_seed() -> None:
    def of(*overrides: str) -> str:
        return family(dataclasses.asdict(from_hydra(compose([*HOST, *overrides]))))

    own = of()
    assert of("morphogenetic=off", "optimization.max_epochs=3", "rng_seed=4") == own
    assert of("morphogenetic.schedule_at=[0.2]", "optimization.max_macs=1e12", "device=auto") == own
    for other in ("dataset.batch_size=16", "task.label_smoothing=0.1", "model.depths=[2,3]"):
        assert of(other) != own
