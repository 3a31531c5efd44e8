"""How long a run trains: in steps, or in multiply-accumulates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from esper.configs import OptimizationConfig
from esper.costs import training_macs
from esper.errors import ConfigError
from esper.tolaria import TolariaTrainer
from esper.tolaria.budget import Budget
from esper.tolaria.schedule import learning_rate
from esper.tolaria.state import TrainingState
from tests.conftest import journal_of, tiny_config, use
from tests.tolaria.checkpoints.test_resume import assert_same, train
from tests.tolaria.growth.test_stack import stacking


def in_macs(**changes: Any) -> Budget:
    """Ten steps an epoch, four images a step: an epoch of a network of 5 MACs, 15 in training, costs 600."""
    settings = {
        "total": 6000,
        "by_compute": True,
        "steps_per_epoch": 10,
        "batch_size": 4,
        "warmup_steps": 0,
        "warmup": 0,
    }
    return Budget(**(settings | changes))


def after(num_macs: int, *, steps: int = 0) -> TrainingState:
    state = TrainingState(global_step=steps, step=steps % 10, epoch=steps // 10)
    state.ledger.train_macs = num_macs
    return state


def test_a_budget_in_macs_counts_everything_that_growth_costs() -> None:
    state = after(3000)
    state.ledger.scoring_macs = state.ledger.judging_macs = 750
    assert in_macs().progress(state) == 0.75


def test_training_ends_at_the_step_that_ends_nearest_to_the_budget() -> None:
    budget = in_macs(total=6020)  # steps of 60
    assert not budget.is_spent(after(5940), 15)
    assert budget.is_spent(after(6000), 15)
    assert not budget.is_spent(after(5980), 15)


def test_total_steps_follow_from_known_growth_at_ends_of_epochs() -> None:
    budget = in_macs(growth=((0.25, 30),))  # 1500 MACs are spent within the third epoch
    assert list(budget.epochs(spent=0, image_macs=15)) == [600, 1200, 1800, 3000, 4200, 5400, 6600]
    assert budget.total_steps(after(0), 15) == 30 + 35
    assert budget.total_steps(after(1800, steps=30), 30) == 65
    assert budget.total_steps(after(2400, steps=35), 30) == 65
    assert in_macs().total_steps(after(0), 15) == 100


@pytest.mark.parametrize(("epochs_between", "num_steps"), [(1, 65), (2, 70), (3, 65), (5, 75), (9, 95), (12, 100)])
def test_total_steps_know_that_growth_waits_for_a_consultation(epochs_between: int, num_steps: int) -> None:
    budget = in_macs(growth=((0.25, 30),), epochs_between=epochs_between)
    assert budget.total_steps(after(0), 15) == num_steps
    assert budget.total_steps(after(1200, steps=20), 15) == num_steps
    assert budget.total_steps(after(1260, steps=21), 15) == num_steps


def test_the_announced_steps_are_those_that_are_trained_however_rare_consultations_are(run_dir: Path) -> None:
    config = stacking(
        optimization__max_epochs=6,
        morphogenetic__schedule_by="compute",
        morphogenetic__schedule_at=[0.2],
        morphogenetic__adaptation_frequency=4,
    )
    train(config, run_dir)
    born, started = journal_of(run_dir, "state")[0], journal_of(run_dir, "run_started")[0]
    assert born["step"] == 4 * started["steps_per_epoch"]
    assert journal_of(run_dir, "epoch")[-1]["step"] == started["total_steps"]


def test_the_learning_rate_decays_by_compute() -> None:
    config = OptimizationConfig(learning_rate=1.0, decay_fraction=0.5)
    found = [learning_rate(config, 50, budget=in_macs(), spent=spent) for spent in (0, 3000, 4500, 6000)]
    assert found == [1.0, 1.0, 0.5, 0.0]


def test_epochs_of_stack_are_epochs_of_the_final_network(run_dir: Path, tmp_path: Path) -> None:
    train(stacking(optimization__max_epochs=4, morphogenetic__schedule_by="compute"), run_dir)
    result, started = ended(run_dir), journal_of(run_dir, "run_started")[0]
    budget = training_macs(4 * 6 * 32, result["num_macs"])
    step = training_macs(32, result["num_macs"])
    assert abs(result["total_macs"] - budget) <= step / 2
    assert journal_of(run_dir, "epoch")[-1]["step"] == started["total_steps"] > 24
    born, host = journal_of(run_dir, "state")[0]["step"], result["num_macs_before"]
    assert training_macs((born - 6) * 32, host) < 0.3 * budget <= training_macs(born * 32, host)
    replayed = tiny_config(
        model__depths=[2, 2],
        model__site_kinds=["after"],
        morphogenetic__policy="replay",
        morphogenetic__recipe_path=str(run_dir),
        optimization__max_macs=float(result["total_macs"]),
    )
    train(replayed, tmp_path / "replayed")
    assert abs(ended(tmp_path / "replayed")["total_macs"] / result["total_macs"] - 1) < 0.02


@pytest.mark.parametrize(
    ("changes", "skipped", "num_doublings"),
    [
        ({"optimization__max_epochs": 2, "morphogenetic__schedule_at": [0.3, 0.31]}, {"too_soon": (0.31,)}, 1),
        ({"morphogenetic__schedule_at": [0.3, 0.35], "morphogenetic__holding_epochs": 3}, {"too_soon": (0.35,)}, 1),
        ({"morphogenetic__schedule_at": [0.15, 0.2, 0.4], "morphogenetic__holding_epochs": 3}, {"too_soon": (0.2,)}, 2),
        ({"morphogenetic__schedule_at": [0.3, 0.4], "morphogenetic__adaptation_frequency": 5}, {"too_soon": (0.4,)}, 1),
        ({"morphogenetic__schedule_at": [0.2, 0.24], "morphogenetic__blending_steps": 12}, {"too_soon": (0.24,)}, 1),
        ({"optimization__max_epochs": 2, "morphogenetic__schedule_at": [0.2, 0.55]}, {"too_late": (0.55,)}, 1),
        ({"optimization__max_epochs": 1, "morphogenetic__schedule_at": [0.55]}, {"too_late": (0.55,)}, 0),
        ({"morphogenetic__schedule_at": [0.3, 0.31]}, {}, 2),
        ({"morphogenetic__schedule_at": [0.2, 0.5]}, {}, 2),
    ],
)
def test_shares_that_are_skipped_do_not_count_in_the_budget(
    run_dir: Path, changes: dict[str, Any], skipped: dict[str, tuple[float, ...]], num_doublings: int
) -> None:
    config = stacking(**{"optimization__max_epochs": 6, "morphogenetic__schedule_by": "compute"} | changes)

    async def budget(trainer: TolariaTrainer) -> Budget:
        await trainer.train()
        return trainer.run.life.budget

    planned = use(config, run_dir, budget)
    assert {name: times for name in ("too_late", "too_soon") if (times := getattr(planned, name))} == skipped
    germinated = [event for event in journal_of(run_dir, "state") if event["new"] == "germinated"]
    assert len({event["step"] for event in germinated}) == num_doublings
    result = ended(run_dir)
    assert planned.total == training_macs(config.optimization.max_epochs * 6 * 32, result["num_macs"])
    assert abs(result["total_macs"] - planned.total) <= training_macs(32, result["num_macs"]) / 2


def test_a_skipped_share_counts_if_without_it_the_length_would_be_one_in_which_nothing_is_skipped(
    run_dir: Path,
) -> None:
    """With a budget for two doublings, all three would take place."""
    config = stacking(morphogenetic__schedule_by="compute", morphogenetic__schedule_at=[0.15, 0.17, 0.53])
    train(config, run_dir)
    (warning,) = (event["message"] for event in journal_of(run_dir, "notice") if "schedule_at" in event["message"])
    assert warning.endswith("so this share is skipped; max_epochs still counts what it would cost")
    result = ended(run_dir)
    two_added = result["num_macs"] - result["num_macs_before"]  # depth 2 to 8; a third doubling: to 16
    three_times = training_macs(3 * 6 * 32, result["num_macs_before"] + two_added // 3 * 7)
    assert result["total_macs"] == pytest.approx(three_times, rel=0.02)


@pytest.mark.parametrize("changes", [{"optimization__max_macs": 4e8}, {"morphogenetic__schedule_by": "steps"}])
def test_a_fixed_length_stays_whatever_is_skipped(run_dir: Path, changes: dict[str, Any]) -> None:
    settings = {"morphogenetic__schedule_by": "compute", "morphogenetic__schedule_at": [0.3, 0.31]}
    config = stacking(**settings | changes | {"morphogenetic__holding_epochs": 2})

    async def budget(trainer: TolariaTrainer) -> Budget:
        return trainer.run.life.budget

    planned = use(config, run_dir, budget)
    assert planned.total == changes.get("optimization__max_macs", 3 * 6)
    assert planned.too_soon == (0.31,)
    assert [at for at, _ in planned.growth] == ([0.3] if planned.by_compute else [])


def test_the_warm_up_of_a_replayed_network_costs_what_that_network_costs(run_dir: Path, tmp_path: Path) -> None:
    train(stacking(), run_dir)
    replayed = stacking(
        morphogenetic__policy="replay", morphogenetic__recipe_path=str(run_dir), optimization__max_macs=1e9
    )

    async def warmup(trainer: TolariaTrainer) -> int:
        return trainer.run.life.budget.warmup

    found = use(replayed, tmp_path / "replayed", warmup)
    assert found == training_macs(3 * 32, ended(run_dir)["num_macs"])


def test_a_share_that_falls_due_after_growth_is_not_skipped(run_dir: Path) -> None:
    """After the first doubling an epoch is a larger share of the budget than those before it."""
    config = stacking(
        optimization__max_epochs=6,
        morphogenetic__schedule_by="compute",
        morphogenetic__schedule_at=[0.05, 0.11, 0.17, 0.23, 0.29, 0.35],
        morphogenetic__growth_until=0.7,
        morphogenetic__policy="schedule",
        optimization__max_macs=4e8,
        model__site_kinds=["after", "beside"],
        morphogenetic__blueprint_categories=["residual"],
    )
    train(config, run_dir)
    assert ended(run_dir)["num_grown"] == 6


def test_a_run_by_compute_resumes_within_its_last_epoch(run_dir: Path, tmp_path: Path) -> None:
    config = stacking(optimization__max_epochs=4, morphogenetic__schedule_by="compute")
    whole, growth = train(config, tmp_path / "whole")
    total = journal_of(tmp_path / "whole", "epoch")[-1]["step"]
    assert total % 6, "the last epoch should be incomplete"
    train(config, run_dir, stop_at=total - 1)
    resumed, growth_resumed = train(config, run_dir)
    assert growth_resumed == growth
    assert_same(resumed, whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimization__max_macs": 10.0}, "the warm-up of the learning rate"),
        ({"optimization__max_macs": 10.0, "optimization__warmup_epochs": 0.0}, "and one more step need"),
        ({"morphogenetic__growth_from": 0.4}, "policy=stack needs shares at or after morphogenetic.growth_from=0.4"),
        ({"morphogenetic__schedule_at": [0.1, 0.4], "model__max_kernels_per_seed": 1}, "2 doublings"),
        ({"morphogenetic__schedule_at": [0.1, 0.4], "morphogenetic__adaptation_cooldown": 1}, "set it to 0"),
        (
            {"optimization__max_macs": 1e9, "morphogenetic__schedule_by": "steps"},
            "set morphogenetic.schedule_by=compute",
        ),
        (
            {"morphogenetic__policy": "schedule"},
            "set optimization.max_macs; new modules instead of copies: morphogenetic=schedule",
        ),
        ({"morphogenetic__max_added_macs": 1.0}, "set optimization.max_macs"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused(run_dir: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        use(stacking(**({"morphogenetic__schedule_by": "compute"} | changes)), run_dir, TolariaTrainer.train)


def ended(run_dir: Path) -> dict[str, Any]:
    result = journal_of(run_dir, "run_ended")[-1]["result"]
    assert isinstance(result, dict)
    return result
