"""Which pilots a plan runs: what fits in their share of the budget, each trunk paid for once."""

from __future__ import annotations

import dataclasses

import pytest

from esper.errors import ConfigError
from esper.planning.budget import PlanBudget
from esper.planning.pilots import Ladder, Pilot, choose_pilots, cost_of, trunk_before

LADDER = Ladder(
    macs_per_epoch={"host": 50.0, "between": 75.0, "final": 100.0},
    warmup_epochs=0.5, decay=0.3, share=0.3, growth_until=0.6,
)  # fmt: skip


def static(size: str, macs: float, seed: int = 0) -> Pilot:
    return Pilot(size=size, share=None, macs=macs, seed=seed)


def test_a_trunk_is_paid_for_once_and_each_branch_pays_for_its_decay() -> None:
    pilots = [static("host", 100), static("host", 200), static("host", 400)]
    assert cost_of(pilots, LADDER) == pytest.approx(0.7 * 400 + 0.3 * (100 + 200 + 400))


def test_growth_begins_from_the_longest_trunk_of_the_host_that_ends_before_it() -> None:
    hosts = [static("host", macs) for macs in (100, 200, 400)]
    grown = Pilot(size="final", share=0.3, macs=400, seed=0)
    assert trunk_before(grown, [*hosts, static("final", 100), static("host", 160, seed=1)], ladder=LADDER) == hosts[0]
    assert trunk_before(dataclasses.replace(grown, seed=2), hosts, ladder=LADDER) is None
    assert cost_of([hosts[0], grown], LADDER) == pytest.approx(100 + 400 - 70)


@pytest.mark.parametrize("pilot_share", [0.1, 0.15, 0.4])
@pytest.mark.parametrize("budget", [1e5, 3e5, 1e7])
def test_pilots_stay_within_their_share_and_use_most_of_it(budget: float, pilot_share: float) -> None:
    pilots = choose_pilots(LADDER, budget=PlanBudget(amount=budget), pilot_share=pilot_share, seed=7)
    assert 0.6 * pilot_share * budget < cost_of(pilots, LADDER) <= pilot_share * budget
    assert {pilot.size for pilot in pilots} == {"host", "between", "final"}
    assert {pilot.seed for pilot in pilots if pilot.share is not None} >= {7}
    for pilot in pilots:  # what one goes on from is there before
        before = trunk_before(pilot, pilots, ladder=LADDER)
        assert before is None or pilots.index(before) < pilots.index(pilot)


def test_smaller_budgets_get_one_seed_and_then_no_size_in_between() -> None:
    found = {}
    for budget in (8.7e3, 7e3, 4.8e3):
        pilots = choose_pilots(LADDER, budget=PlanBudget(amount=budget), pilot_share=0.2, seed=0)
        assert cost_of(pilots, LADDER) <= 0.2 * budget
        found[budget] = len({pilot.seed for pilot in pilots}), len({pilot.size for pilot in pilots})
    assert found == {8.7e3: (2, 3), 7e3: (1, 3), 4.8e3: (1, 2)}


def test_a_longer_pilot_is_preferred_to_another_seed() -> None:
    short, long = (
        choose_pilots(LADDER, budget=PlanBudget(amount=budget), pilot_share=0.2, seed=0) for budget in (8.7e3, 1e4)
    )
    assert len({pilot.seed for pilot in short}) == 2
    assert len({pilot.seed for pilot in long}) == 1
    assert max(pilot.macs for pilot in long) > max(pilot.macs for pilot in short)


def test_plans_of_other_budgets_have_pilots_in_common() -> None:
    short, long = (
        set(choose_pilots(LADDER, budget=PlanBudget(amount=b), pilot_share=0.15, seed=0)) for b in (1e6, 2e6)
    )
    assert len(short & long) >= len(short) / 2


@pytest.mark.parametrize(
    ("budget", "has_share"),
    [(PlanBudget(amount=3e3), True), (PlanBudget(amount=5e2), False), (PlanBudget(amount=1.1e3, slack=1.25), False),
     (PlanBudget(amount=30, macs_per_unit=100.0, option="--epochs", unit="epochs"), True),
     (PlanBudget(amount=0.9, macs_per_unit=3456.789, option="--hours", unit="hours of the host"), True)],
)  # fmt: skip
@pytest.mark.parametrize("pilot_share", [0.01, 0.05, 0.15])
def test_a_budget_that_pays_for_no_pilots_is_refused_with_two_ways_to_pay_for_them(
    budget: PlanBudget, has_share: bool, pilot_share: float
) -> None:
    with pytest.raises(ConfigError) as refused:
        choose_pilots(LADDER, budget=budget, pilot_share=pilot_share, seed=0)
    advice = str(refused.value).partition("; give ")[2]
    amounts = dict(part.split("=") for part in advice.split(" or "))
    assert set(amounts) == {budget.option} | ({"--pilot-share"} if has_share else set())
    larger = dataclasses.replace(budget, amount=float(amounts[budget.option]))
    assert choose_pilots(LADDER, budget=larger, pilot_share=pilot_share, seed=0)
    less = dataclasses.replace(budget, amount=0.98 * larger.amount / budget.slack)
    with pytest.raises(ConfigError):  # it was the least
        choose_pilots(LADDER, budget=less, pilot_share=pilot_share, seed=0)
    if has_share:
        assert choose_pilots(LADDER, budget=budget, pilot_share=float(amounts["--pilot-share"]), seed=0)


def test_a_network_grows_only_where_the_end_of_an_epoch_is_near_its_share() -> None:
    assert not LADDER.grows_in(90.0)  # after one epoch of the host, more than half is over
    assert LADDER.grows_in(240.0)
