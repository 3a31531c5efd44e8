from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from esper.planning.judge import judge
from esper.planning.learned import cell_of
from esper.planning.observations import Choice, Observation, Plan
from esper.simic.growth import FEATURES, GROWN, GrowthPolicy
from tests.planning.worlds import BUDGET, World, pilots, question

_ZEROS, _ONES = (0.0,) * len(FEATURES), (1.0,) * len(FEATURES)
_NAMES = ("host", "between", "final")
_WORLD = World(
    floor={"host": 0.12, "between": 0.12, "final": 0.1},
    amplitude=dict.fromkeys(_NAMES, 1.0),
    exponent=dict.fromkeys(_NAMES, 1.0),
    tau=0.9,
    noise=1e-5,
)
_PILOTS = pilots(_WORLD, np.random.default_rng(0))
_ASKED = question(pilot_macs=10.0)


def policy(lead: float, *, is_active: bool = True) -> GrowthPolicy:
    """One that always expects the same."""
    return GrowthPolicy(weights=_ZEROS, mean=_ZEROS, deviation=_ONES, bias=lead, num_cells=14, is_active=is_active)


def planned(given: GrowthPolicy | None = None) -> Plan:
    return judge(_ASKED, _PILOTS, policy=given, num_draws=40)


def runs(macs: float, *, share: float = 0.3) -> list[Observation]:
    """One of each option, as it is expected."""
    exact = dataclasses.replace(_WORLD, noise=0.0)
    choices = [*(Choice(size=name) for name in _NAMES), Choice(size="final", share=share)]
    return [exact.run(choice, macs, rng=np.random.default_rng(0)) for choice in choices]


def test_without_an_active_policy_the_plan_is_the_same() -> None:
    assert planned(policy(-5.0, is_active=False)) == planned()


def test_a_policy_that_agrees_changes_nothing_and_is_named_in_why() -> None:
    plan, without = planned(policy(4.0)), planned()
    assert without.recommended.share is not None
    assert plan.why.startswith(without.why)
    assert "A policy learned from 14 earlier plans and their outcomes expects growing to end" in plan.why
    assert dataclasses.replace(plan, why=without.why) == without


def test_a_policy_against_growing_trains_the_best_size_from_scratch() -> None:
    plan, without = planned(policy(-4.0)), planned()
    static = [option for option in without.options if option.choice.share is None]
    assert plan.recommended == static[0].choice == plan.options[0].choice
    assert plan.without_policy == without.recommended
    assert not plan.matters
    assert "behind the best size from scratch; the pilots alone recommend growing at" in plan.reason
    assert plan.why.startswith("Recommended because the learned policy says so")
    worth = 0.002 * float(np.median([option.figure.expected for option in without.options]))
    assert f"{4 * worth:.2g} nats behind" in plan.reason


def test_a_policy_for_growing_grows_at_30_percent() -> None:
    poor = dataclasses.replace(_WORLD, tau=0.3)
    seen = pilots(poor, np.random.default_rng(0))
    assert judge(_ASKED, seen, num_draws=40).recommended == Choice(size="final")
    plan = judge(_ASKED, seen, policy=policy(4.0), num_draws=40)
    assert plan.recommended == Choice(size="final", share=0.3)


def test_a_plan_that_lacks_what_a_policy_reads_says_that_it_is_not_used() -> None:
    asked = dataclasses.replace(_ASKED, shares=(0.1, 0.15))
    without, plan = (judge(asked, _PILOTS, policy=given, num_draws=40) for given in (None, policy(-4.0)))
    assert plan.recommended == without.recommended
    assert plan.why == (
        f"{without.why} The learned policy is not used: it takes host, final size and growing at about 30 %."
    )


@pytest.mark.parametrize("macs", [BUDGET - 10, BUDGET])
def test_outcomes_are_those_of_the_whole_budget_and_pilots_cost_what_they_took_of_it(macs: float) -> None:
    found = cell_of(planned(), runs(macs), family="a")
    assert found is not None
    worth = 0.002 * float(np.median([option.figure.expected for option in planned().options]))
    truth = dict(zip((*_NAMES, GROWN), (-one.loss / worth for one in runs(BUDGET)), strict=True))
    assert found.figures == pytest.approx(truth, rel=0.002)
    lost = (_WORLD.loss(Choice(size="final"), BUDGET - 10) - _WORLD.loss(Choice(size="final"), BUDGET)) / worth
    assert found.costs["final"] == pytest.approx(lost, rel=0.1)
    assert (found.planned, found.static) == (GROWN, "final")


def test_a_plan_that_a_policy_overruled_counts_with_what_it_would_have_recommended() -> None:
    with_it, without = (cell_of(plan, runs(BUDGET), family="a") for plan in (planned(policy(-4.0)), planned()))
    assert with_it is not None
    assert without is not None
    assert with_it.planned == without.planned == GROWN


def test_a_plan_without_an_outcome_of_every_option_is_left_out() -> None:
    plan = planned()
    assert cell_of(plan, runs(BUDGET)[1:], family="a") is None
    assert cell_of(plan, runs(BUDGET / 2), family="a") is None
    assert cell_of(plan, runs(BUDGET, share=0.5), family="a") is None
