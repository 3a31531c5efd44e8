"""The arms of a comparison that depend on the grown run: what they take from it, and what they refuse."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from esper import fit
from esper.configs import TolariaConfig, load_config
from esper.configs.comparison import ARMS
from esper.configs.compose import compose
from esper.configs.load import from_hydra
from esper.configs.paths import as_given
from esper.costs import training_macs
from esper.errors import ConfigError, RunError
from esper.launch.run import Outcome, run
from esper.tracking.files import read_recipe
from tests.conftest import tiny_config

TINY = (
    "experiment=fair_comparison",
    "model=resnet_small",
    "model.widths=[4,8]",
    "model.depths=[1,1]",
    "model.target_layers=[layer1,layer2]",
    "dataset=synthetic",
    "dataset.image_size=8",
    "dataset.num_examples=320",
    "dataset.batch_size=32",
    "dataset.val_split=0.4",
    "optimization.max_epochs=4",
    "optimization.warmup_epochs=0.5",
    "morphogenetic=schedule",
    "morphogenetic.judged=false",
    "morphogenetic.holding_epochs=1",
    "morphogenetic.newborn_warmup_steps=2",
    "tracking=none",
    "device=cpu",
)


def train(arm: str, *more: str) -> Outcome:
    return fit(*TINY, f"arm={arm}", *more)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished grown run, in a directory of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("comparison"))
        return train("grown").run_dir


@pytest.fixture
def beside(grown: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(grown.parents[2])
    return grown


def result_of(run_dir: Path) -> dict[str, float]:
    result = json.loads((run_dir / "status.json").read_text())["result"]
    assert isinstance(result, dict)
    return result


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_differs_from_grown_only_in_whether_and_how_it_grows(arm: str) -> None:
    grown, other = (dataclasses.asdict(from_hydra(compose([*TINY, f"arm={name}"]))) for name in ("grown", arm))
    assert other.pop("comparison") == {"arm": arm, "grown_run": None, "grown_macs": None}
    grown.pop("comparison")
    for key in ("enable_tamiyo", "policy", "always_score", "recipe_fraction"):
        grown["morphogenetic"].pop(key)
        other["morphogenetic"].pop(key)
    assert other == grown


@pytest.mark.parametrize(
    ("arm", "macs"),
    [("static_flops", "num_macs_before"), ("final_flops", "num_macs"), ("scheduled", None), ("random", None)],
)
def test_equal_compute_is_that_of_grown_to_the_nearest_step(beside: Path, arm: str, macs: str | None) -> None:
    spent, outcome = result_of(beside), train(arm)
    result = outcome.result
    assert result is not None
    assert spent["growth_macs"] > 0
    assert spent["num_macs"] > spent["num_macs_before"]
    if macs is not None:
        assert result["num_macs"] == spent[macs]
    one_step = training_macs(32, result["num_macs"])
    assert abs(result["total_macs"] - spent["total_macs"]) <= one_step / 2
    frozen = load_config(outcome.run_dir / "config.yaml")
    assert frozen.optimization.max_macs == spent["total_macs"]
    assert (frozen.morphogenetic.schedule_by == "compute") == (macs is None)


def test_final_has_the_last_architecture_of_grown_and_as_many_epochs(beside: Path) -> None:
    outcome = train("final")
    assert outcome.result is not None
    assert outcome.result["epochs"] == 4
    assert outcome.result["num_parameters"] == result_of(beside)["num_parameters"]
    mine, recorded = ([(one.site, one.blueprint_id) for one in read_recipe(d)] for d in (outcome.run_dir, beside))
    assert mine == recorded != []
    frozen = load_config(outcome.run_dir / "config.yaml")
    assert frozen.comparison.grown_run == beside.name
    assert frozen.morphogenetic.recipe_path is not None
    assert Path(frozen.morphogenetic.recipe_path).samefile(beside / "recipe.json")
    assert not as_given(frozen.morphogenetic.recipe_path).startswith("/")  # the digest is the same in another folder


def test_equal_time_is_computed_from_the_speed_of_final_flops(beside: Path) -> None:
    for left in beside.parent.glob("arm_final_*"):
        left.rename(beside.parents[1] / left.name)
    with pytest.raises(ConfigError, match="finish the same command with arm=final_flops first"):
        train("final_seconds")
    timed, spent = train("final_flops").result, result_of(beside)
    result = train("final_seconds").result
    assert timed is not None
    assert result is not None
    macs = spent["seconds"] * timed["total_macs"] / timed["seconds"]
    assert abs(result["total_macs"] - macs) <= max(macs, training_macs(32, result["num_macs"])) / 2


def test_a_missing_grown_run_is_named_in_the_error_and_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match=r"needs the run arm_grown-.*, which does not exist; .* arm=grown first"
    ) as error:
        train("static_flops")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_the_grown_run_of_another_seed_is_not_used(beside: Path) -> None:
    with pytest.raises(ConfigError, match="which does not exist"):
        train("final", "rng_seed=1")


def test_the_same_command_shows_the_result_until_the_grown_run_changes(beside: Path) -> None:
    first = train("static_flops", "description=again")
    journal = (first.run_dir / "journal.jsonl").read_text()
    assert train("static_flops") == first
    assert (first.run_dir / "journal.jsonl").read_text() == journal
    status = beside / "status.json"
    finished = status.read_text()
    content = json.loads(finished)
    content["result"]["total_macs"] *= 2
    try:
        status.write_text(json.dumps(content))
        with pytest.raises(ConfigError, match=r"was started with a different grown run; .*fresh=true"):
            train("static_flops")
        again = train("static_flops", "fresh=true").result
    finally:
        status.write_text(finished)
    assert first.result is not None
    assert again is not None
    assert again["total_macs"] > 1.9 * first.result["total_macs"]
    train("static_flops", "fresh=true")


def test_static_and_final_train_for_as_many_epochs_as_grown_though_a_budget_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ("optimization.max_macs=3e7", "morphogenetic.schedule_by=compute")
    with pytest.raises(ConfigError, match="arm=grown first"):
        train("static", *given)
    grown = train("grown", *given).result
    results = [train(arm, *given).result for arm in ("static", "final")]
    assert grown is not None
    assert [result and result["epochs"] for result in results] == [grown["epochs"]] * 2


def test_with_one_module_there_is_no_size_in_between(beside: Path) -> None:
    with pytest.raises(ConfigError, match=r"grew .* at layer1\.0:.*: no size lies in between; leave this run"):
        train("between_flops")


def test_a_dry_run_of_an_arm_needs_no_grown_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train("final_flops", "dry_run=true").exit_code == 0
    assert "step 2" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_resolved_configuration_runs_without_a_command_and_an_unresolved_one_is_refused(
    beside: Path, tmp_path: Path
) -> None:
    frozen = load_config(train("final_flops").run_dir / "config.yaml")
    assert run(frozen, tmp_path / "copy").result is not None
    config: TolariaConfig = tiny_config(morphogenetic__policy="replay", comparison__arm="final")
    with pytest.raises(ConfigError, match=r'use fit\("arm=final", \.\.\.\)'):
        run(config, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_an_arm_that_has_finished_is_shown_from_another_directory_but_not_as_one_of_other_settings(
    beside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train("final")
    monkeypatch.chdir(tmp_path)
    assert fit(*TINY, "arm=final", run_dir=first.run_dir).result == first.result
    for other, differs in (("arm=final_flops", r"comparison\.arm: final → final_flops"), ("rng_seed=7", "rng_seed: ")):
        with pytest.raises(RunError, match=f"holds a run of other settings: .*{differs}"):
            fit(*TINY, "arm=final", other, run_dir=first.run_dir)
