"""When and where a training grows: budget, forks, times, replay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from esper.contracts.decisions import AdaptationDecision
from esper.contracts.recipe import Graft
from esper.errors import ConfigError
from esper.tolaria import TolariaTrainer
from esper.tolaria.checkpoints.contents import snapshot
from esper.tolaria.evaluate import lowest
from esper.tolaria.growth.forks import choose_by_forks
from esper.tolaria.optim import set_learning_rates
from esper.tracking.files import read_recipe, write_recipe
from tests.conftest import journal_of, tiny_config, use


async def tensors(trainer: TolariaTrainer) -> dict[str, Tensor]:
    saved = snapshot(trainer.run)
    return {name: value.clone() for name, value in {**saved.model, **saved.optimizer}.items()}


def test_a_fork_leaves_every_tensor_bit_identical_and_picks_the_lower_loss(run_dir: Path) -> None:
    async def body(trainer: TolariaTrainer) -> AdaptationDecision:
        await trainer.train_epoch()
        before = await tensors(trainer)
        decision = AdaptationDecision(
            should_adapt=True,
            site="layer1.0:after",
            blueprint_id="conv1x1",
            alternatives=(("layer2.0:beside", "bottleneck"),),
        )
        chosen = choose_by_forks(trainer.run.life, decision, schedule=trainer.run.schedule)
        after = await tensors(trainer)
        assert before.keys() == after.keys()
        assert [name for name in before if not torch.equal(before[name], after[name])] == []
        assert trainer.run.life.cost == trainer.run.host_cost
        return chosen

    chosen = use(tiny_config(morphogenetic__fork_steps=8, morphogenetic__policy="heuristic"), run_dir, body)
    forks = journal_of(run_dir, "fork")
    assert [fork["site"] for fork in forks] == ["layer1.0:after", "layer2.0:beside"]
    assert chosen.site == min(forks, key=lambda fork: fork["loss"])["site"]
    assert [fork["blueprint_id"] for fork in forks] == ["conv1x1", "bottleneck"]
    assert chosen.blueprint_id == ("conv1x1" if chosen.site == "layer1.0:after" else "bottleneck")
    assert all(fork["cost_macs"] > 0 for fork in forks)


def test_a_fork_that_fails_is_skipped_and_the_decision_is_unchanged_if_all_fail(run_dir: Path) -> None:
    def choose(trainer: TolariaTrainer, first: str, second: str) -> AdaptationDecision:
        alternatives = (("layer2.0:beside", second),)
        decision = AdaptationDecision(
            should_adapt=True, site="layer1.0:after", blueprint_id=first, alternatives=alternatives
        )
        return choose_by_forks(trainer.run.life, decision, schedule=trainer.run.schedule)

    async def body(trainer: TolariaTrainer) -> tuple[AdaptationDecision, AdaptationDecision]:
        await trainer.train_epoch()
        return choose(trainer, "fold_1x1", "conv1x1"), choose(trainer, "fold_1x1", "squeeze_excite")

    one, none = use(tiny_config(morphogenetic__fork_steps=2, morphogenetic__policy="heuristic"), run_dir, body)
    assert (one.site, one.blueprint_id) == ("layer2.0:beside", "conv1x1")
    assert (none.site, none.alternatives) == ("layer1.0:after", ())


def test_a_nan_or_inf_loss_is_never_the_lowest() -> None:
    assert lowest({"diverged": float("nan"), "sound": 5.0, "endless": float("inf")}) == "sound"


def test_growth_stays_within_the_budget(run_dir: Path) -> None:
    config = tiny_config(
        morphogenetic__schedule_at=[0.3, 0.3],
        morphogenetic__blueprint_categories=["residual"],
        morphogenetic__max_added_parameters=0.25,
    )
    use(config, run_dir, lambda trainer: trainer.train())
    sizes = [surgery["num_parameters_after"] for surgery in journal_of(run_dir, "surgery")]
    (started,) = journal_of(run_dir, "run_started")
    assert sizes
    assert max(sizes) <= 1.25 * started["num_parameters"]
    (event,) = journal_of(run_dir, "signals")
    assert {signal["parameters_left"] for signal in event["signals"]} == {started["num_parameters"] // 4}


def test_tamiyo_is_not_consulted_before_growth_from_unless_the_loss_is_on_a_plateau(
    run_dir: Path, tmp_path: Path
) -> None:
    late = {"optimization__max_epochs": 6, "morphogenetic__growth_from": 0.45, "morphogenetic__policy": "never"}
    use(tiny_config(**late), run_dir, lambda trainer: trainer.train())
    assert [event["epoch"] for event in journal_of(run_dir, "signals")] == [3]
    stuck = late | {"optimization__min_delta": 100.0, "morphogenetic__plateau_epochs": 1}
    use(tiny_config(**stuck), tmp_path / "stuck", lambda trainer: trainer.train())
    assert [event["epoch"] for event in journal_of(tmp_path / "stuck", "signals")] == [2, 3]


def test_a_recorded_network_is_trained_from_scratch_like_a_host(run_dir: Path, tmp_path: Path) -> None:
    site, recipe = "layer1.0:after", tmp_path / "recipe.json"
    graft = Graft(graft_id=7, site=site, blueprint_id="conv1x1", init_seed=1, init_gain=0.5, born_step=6)
    write_recipe(recipe, [graft], host="resnet_small")
    replayed = tiny_config(
        morphogenetic__policy="replay",
        morphogenetic__recipe_path=str(recipe),
        morphogenetic__newborn_weight_decay=False,
        morphogenetic__insertion_gain_rate=10.0,
    )

    async def replay(trainer: TolariaTrainer) -> None:
        run = trainer.run
        set_learning_rates(run.optimizer, run.schedule(run.state.global_step), step=run.state.global_step)
        assert len({group["lr"] for group in trainer.run.optimizer.param_groups}) == 1
        decays = [group["weight_decay"] for group in trainer.run.optimizer.param_groups]
        assert decays[2:] == decays[:2]  # weights and vectors, of what was rebuilt as of the host
        kernel = trainer.run.model.slot(site).kernel(trainer.run.model.recipe[0])
        assert torch.equal(kernel.output_scale, torch.ones_like(kernel.output_scale))
        await trainer.train()

    use(replayed, run_dir, replay)
    (ended,) = journal_of(run_dir, "run_ended")
    result = ended["result"]
    assert result["num_kept"] == 1
    assert result["num_grown"] == 0
    assert result["num_parameters"] == result["peak_parameters"] > result["num_parameters_before"]
    assert result["growth_macs"] == 0


def test_the_macs_of_the_parts_sum_to_the_total(run_dir: Path) -> None:
    use(tiny_config(morphogenetic__improvement_threshold=5.0), run_dir, lambda trainer: trainer.train())
    (ended,) = journal_of(run_dir, "run_ended")
    result = ended["result"]
    parts = ("forward", "backward", "scoring", "forking", "incubation", "judging")
    assert result["total_macs"] == sum(result[f"{part}_macs"] for part in parts)
    assert result["num_kept"] == 0
    assert 0 < result["discarded_macs"] < result["train_macs"]
    assert result["peak_parameters"] > result["num_parameters"] == result["num_parameters_before"]


@pytest.mark.parametrize(("setting", "value"), [("insertion_gain_rate", 10.0), ("newborn_weight_decay", False)])
def test_a_newborn_may_have_its_own_learning_rate_and_weight_decay(run_dir: Path, setting: str, value: Any) -> None:
    async def groups(trainer: TolariaTrainer) -> list[dict[str, Any]]:
        await trainer.train_epoch()
        await trainer.handle_end_of_epoch()
        set_learning_rates(trainer.run.optimizer, trainer.run.schedule(8), step=8)
        return [group for group in trainer.run.optimizer.param_groups if group["born_step"] is not None]

    newborn = use(tiny_config(**{f"morphogenetic__{setting}": value}), run_dir, groups)
    if setting == "insertion_gain_rate":
        (fast,) = [group for group in newborn if group["lr"] == pytest.approx(10 * min(g["lr"] for g in newborn))]
        assert len(fast["params"]) == 1
        assert fast["names"][0].endswith("norm.weight")
    else:
        assert {group["weight_decay"] for group in newborn} == {0.0}


def test_without_the_judge_every_kernel_at_alpha_1_is_kept(run_dir: Path) -> None:
    config = tiny_config(morphogenetic__judged=False, morphogenetic__improvement_threshold=5.0)
    use(config, run_dir, lambda trainer: trainer.train())
    (ended,) = journal_of(run_dir, "run_ended")
    assert ended["result"]["num_kept"] == ended["result"]["num_grown"] == 1
    assert ended["result"]["judging_macs"] == 0
    assert journal_of(run_dir, "judgement") == []


def test_scoring_changes_no_bit_of_a_training(run_dir: Path, tmp_path: Path) -> None:
    async def host(trainer: TolariaTrainer) -> dict[str, Tensor]:
        await trainer.train()
        return {name: value.clone() for name, value in trainer.run.model.host.state_dict().items()}

    measured = use(tiny_config(morphogenetic__policy="never"), run_dir, host)
    plain = use(tiny_config(morphogenetic__enable_tamiyo=False), tmp_path / "plain", host)
    scored = journal_of(run_dir, "signals")
    assert scored
    assert all(signal["score"] is not None for event in scored for signal in event["signals"])
    assert [name for name in plain if not torch.equal(plain[name], measured[name])] == []


def test_a_part_of_the_controller_split_costs_less_and_ranks_the_sites_alike(run_dir: Path, tmp_path: Path) -> None:
    settings = {"morphogenetic__policy": "never", "dataset__num_examples": 3200}

    async def score(trainer: TolariaTrainer) -> None:
        await trainer.train_epoch()
        trainer.run.growth.end_of_epoch(is_last=False)

    use(tiny_config(**settings), run_dir, score)
    use(tiny_config(**settings, morphogenetic__score_examples=160), tmp_path / "part", score)
    (whole,), (part,) = (journal_of(folder, "signals") for folder in (run_dir, tmp_path / "part"))
    assert part["cost_macs"] * 4 == whole["cost_macs"]  # 160 of 640
    for kind in ("after", "beside"):
        ranked = [
            [one["site"] for one in sorted(event["signals"], key=lambda one: one["score"]) if one["kind"] == kind]
            for event in (whole, part)
        ]
        assert ranked[0] == ranked[1]
    errors = [[one["score_error"] for one in event["signals"]] for event in (part, whole)]
    ratios = sorted(part / whole for part, whole in zip(*errors, strict=True))
    assert 1.0 < ratios[len(ratios) // 2] < 4.0  # twice, but for the error of the error


def test_a_policy_that_uses_no_scores_need_not_compute_them(run_dir: Path) -> None:
    use(tiny_config(morphogenetic__always_score=False), run_dir, lambda trainer: trainer.train())
    (event,) = journal_of(run_dir, "signals")
    assert {signal["score"] for signal in event["signals"]} == {None}
    (ended,) = journal_of(run_dir, "run_ended")
    assert ended["result"]["scoring_macs"] == 0
    assert ended["result"]["num_grown"] == 1


def test_a_scheduled_time_after_the_last_consultation_is_warned_about(run_dir: Path) -> None:
    use(tiny_config(morphogenetic__schedule_at=[0.3, 0.4]), run_dir, lambda trainer: trainer.train())
    (notice,) = journal_of(run_dir, "notice")
    late = "the next consultation is after growth_until"
    assert notice["message"] == f"schedule_at=[0.4]: {late}, so this share is skipped"


@pytest.mark.parametrize("times", [[0.4], [0.5, 0.4]])
def test_nothing_will_grow_is_said_only_if_all_scheduled_times_are_too_late(run_dir: Path, times: list[float]) -> None:
    use(tiny_config(morphogenetic__schedule_at=times), run_dir, lambda trainer: trainer.train())
    (notice,) = journal_of(run_dir, "notice")
    late = "the next consultation is after growth_until"
    assert notice["message"] == f"schedule_at={sorted(times)}: {late}, so nothing will grow"
    assert journal_of(run_dir, "run_ended")[0]["result"]["num_grown"] == 0


@pytest.mark.parametrize("site", ["layer1.0:width", "layer1.0.conv1:parallel"])
def test_a_recipe_is_replayed_at_any_kind_of_site_whatever_site_kinds_says(
    run_dir: Path, tmp_path: Path, site: str
) -> None:
    recipe, blueprint = tmp_path / "recipe.json", "widen" if site.endswith("width") else "fold_3x3"
    graft = Graft(graft_id=1, site=site, blueprint_id=blueprint, init_seed=1, init_gain=0.5, born_step=6)
    write_recipe(recipe, [graft], host="resnet_small")
    config = tiny_config(morphogenetic__policy="replay", morphogenetic__recipe_path=str(recipe))
    use(config, run_dir, lambda trainer: trainer.train())
    (ended,) = journal_of(run_dir, "run_ended")
    assert ended["result"]["num_kept"] == 1


def test_a_part_of_a_recipe_is_what_grew_first_up_to_half_of_its_macs(run_dir: Path, tmp_path: Path) -> None:
    recipe, sites = tmp_path / "recipe.json", ("layer1.0:after", "layer2.0:after", "layer2.0:beside")
    blueprints = ("basic_block", "conv1x1", "conv1x1")  # the first is the largest
    grafts = [
        Graft(graft_id=number, site=site, blueprint_id=blueprint, init_seed=1, init_gain=0.5, born_step=6)
        for number, (site, blueprint) in enumerate(zip(sites, blueprints, strict=True), start=1)
    ]
    write_recipe(recipe, grafts, host="resnet_small")
    part = {"morphogenetic__recipe_path": str(recipe), "morphogenetic__recipe_fraction": 0.5}
    use(tiny_config(morphogenetic__policy="replay", **part), run_dir, lambda trainer: trainer.train())
    assert [graft.site for graft in read_recipe(run_dir)] == ["layer1.0:after"]


def test_a_recipe_of_another_host_is_a_config_error(run_dir: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.json"
    graft = Graft(graft_id=1, site="layer9.0:after", blueprint_id="conv1x1", init_seed=1, init_gain=0.5, born_step=6)
    write_recipe(recipe, [graft], host="resnet_small")
    config = tiny_config(morphogenetic__policy="replay", morphogenetic__recipe_path=str(recipe))
    with pytest.raises(ConfigError, match=r"recipe_path=.*: it has a module at layer9\.0:after, a site that this"):
        use(config, run_dir, lambda trainer: trainer.train())


@pytest.mark.parametrize("per", ["site", "macs", "parameters"])
def test_sites_are_compared_by_score_per_mac_or_parameter_added(run_dir: Path, per: str) -> None:
    config = tiny_config(morphogenetic__policy="never", morphogenetic__score_per=per, model__site_kinds=["beside"])
    use(config, run_dir, lambda trainer: trainer.train())
    (event, *_) = journal_of(run_dir, "signals")
    signals = event["signals"]
    assert all(signal["added_macs"] > 0 and signal["added_parameters"] > 0 for signal in signals)
    costs = [1 if per == "site" else signal[f"added_{per}"] for signal in signals]
    scores = [signal["score"] / cost for signal, cost in zip(signals, costs, strict=True)]
    errors = [signal["score_error"] / cost for signal, cost in zip(signals, costs, strict=True)]
    for own, other in ((0, 1), (1, 0)):  # two sites: the median of the others is the other
        usual = max(scores[other], errors[other])
        expected = 1.0 if scores[own] <= 0 else min(1.0, usual / scores[own])
        assert signals[own]["health"] == pytest.approx(expected)
