from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from esper.contracts.metrics import ACCURACY
from esper.errors import RunError
from esper.planning.forecast import forecast
from esper.planning.judge import judge
from esper.planning.observations import Choice, Observation, Plan
from esper.planning.words import difference_words
from tests.planning.worlds import BUDGET, SIZES, World, pilots, question, random_world

_DRAWS = 40


def _world(*, crossing: float, tau: float = 0.9) -> World:
    """Host and final size cross at this part of the budget."""
    gap = (BUDGET * crossing) ** -1 - (2 * BUDGET * crossing) ** -1
    return World(
        floor={"host": 0.1 + gap, "between": 0.1 + gap, "final": 0.1},  # the size in between is no good
        amplitude=dict.fromkeys(("host", "between", "final"), 1.0),
        exponent=dict.fromkeys(("host", "between", "final"), 1.0),
        tau=tau,
        noise=1e-4,
    )


def _plan(world: World) -> Plan:
    return judge(question(), pilots(world, np.random.default_rng(0)), num_draws=_DRAWS)


@pytest.mark.parametrize("crossing", [0.01, 30])
def test_where_one_size_is_ahead_all_along_no_crossing_is_named(crossing: float) -> None:
    assert _plan(_world(crossing=crossing)).crossing is None


def test_far_below_the_crossing_the_host_is_trained_longer() -> None:
    plan = _plan(_world(crossing=8))
    assert plan.recommended == Choice(size="host")
    assert plan.matters
    assert "training the host longer" in plan.reason.lower()


def test_around_the_crossing_it_grows() -> None:
    plan = _plan(_world(crossing=0.9))
    assert plan.recommended.share is not None
    assert plan.matters
    assert plan.crossing is not None
    assert plan.crossing.low < 0.9 * BUDGET < plan.crossing.high


def test_growing_that_carries_nothing_over_is_not_recommended() -> None:
    plan = _plan(_world(crossing=0.3, tau=0.5))
    assert plan.recommended == Choice(size="final")


def test_no_difference_worth_the_choice_is_an_answer() -> None:
    seen = pilots(_world(crossing=1, tau=0.5), np.random.default_rng(0), longest=0.95)
    plan = judge(question(), seen, num_draws=_DRAWS)
    assert not plan.matters
    assert plan.reason.startswith("No difference worth the choice")


def test_a_large_difference_that_is_unsure_is_left_open() -> None:
    plan = _plan(_world(crossing=1, tau=0.5))
    assert not plan.matters
    assert plan.reason.startswith("The pilots leave open which is better")


def test_it_says_why_an_option_is_recommended_what_is_lost_and_what_is_as_good() -> None:
    plan = _plan(_world(crossing=0.9))
    lost, if_wrong = map(float, re.findall(r"(?:lose|or) (\S+) nats", plan.why))
    assert lost == pytest.approx(plan.chosen.regret, rel=0.05)
    assert if_wrong > lost
    worth = 0.002 * float(np.median([option.loss.expected for option in plan.options]))
    alike = plan.why.partition("not worth a choice: ")[2]
    for option in plan.options[1:]:
        if abs(option.regret - plan.chosen.regret - worth) > 0.1 * worth:
            is_alike = option.regret - plan.chosen.regret < worth
            assert (f"grow at {100 * (option.choice.share or 0):.0f} %" in alike) == is_alike


@pytest.mark.parametrize("seed", [0, 5])
def test_it_says_which_kind_is_the_best_more_often_than_the_recommended_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    plan = judge(question(), pilots(random_world(rng), rng, longest=1 / 20), num_draws=_DRAWS)
    chances: dict[str, float] = {}
    for option in plan.options:
        kind = option.choice.size if option.choice.share is None else "grown"
        chances[kind] = chances.get(kind, 0.0) + option.p_best
    mine = plan.recommended.size if plan.recommended.share is None else "grown"
    assert ("is the best more often" in plan.why) == (max(chances.values()) > chances[mine] + 1e-9)


@pytest.mark.parametrize("seed", [1, 2])
def test_options_that_may_all_end_without_an_error_share_the_probability_of_being_the_best(seed: int) -> None:
    names = ("host", "between", "final")
    world = World(
        floor=dict.fromkeys(names, 0.0), amplitude=dict(zip(names, (0.5, 0.6, 0.7), strict=True)),
        exponent=dict.fromkeys(names, 0.8), tau=0.9, noise=0.02,
    )  # fmt: skip
    seen = [
        dataclasses.replace(one, figure=min(1.0, 1 - one.loss))
        for one in pilots(world, np.random.default_rng(seed), longest=1 / 8)
    ]
    plan = judge(dataclasses.replace(question(), headline=ACCURACY, num_examples=1000), seen, num_draws=_DRAWS)
    assert plan.recommended == Choice(size="host")
    better = re.search(r"probability (?:of )?(\d+) %", plan.reason)
    assert better is not None
    # To be the best of all is no more likely than to be better than one other.
    assert 0.3 < plan.chosen.p_best <= int(better[1]) / 100 + 0.005
    assert sum(option.p_best for option in plan.options) == pytest.approx(1)


def test_a_difference_names_the_unit_or_the_metric() -> None:
    loss = question().headline
    assert difference_words(0.0042, ACCURACY) == "0.42 points"
    assert difference_words(0.0031, loss) == "0.0031 nats"
    assert difference_words(0.0031, dataclasses.replace(loss, label="bits a byte", unit="")) == "0.0031 bits a byte"


def test_probabilities_sum_to_one_and_regret_is_least_for_what_is_recommended() -> None:
    plan = _plan(_world(crossing=0.9))
    assert sum(option.p_best for option in plan.options) == pytest.approx(1)
    assert plan.options[0].choice == plan.recommended
    regrets = [option.regret for option in plan.options]
    assert min(regrets) >= 0
    assert regrets[0] <= min(regrets) + 0.0005


def test_pilots_are_charged_and_what_is_continued_is_given_back() -> None:
    seen = pilots(_world(crossing=0.9), np.random.default_rng(0))
    asked = question(pilot_macs=10.0, trunks={"host": (4.0, 2.0)}, decay=0.3)
    macs = {option.choice: option.macs for option in judge(asked, seen, num_draws=_DRAWS).options}
    assert macs[Choice(size="host")] == pytest.approx(BUDGET - 10 + 4)
    assert macs[Choice(size="final")] == pytest.approx(BUDGET - 10)
    assert macs[Choice(size="final", share=0.5)] == pytest.approx(BUDGET - 10 + 4)
    assert macs[Choice(size="final", share=0.1)] == pytest.approx(BUDGET - 10 + 4)


def test_a_trunk_that_is_longer_than_what_an_option_trains_before_it_grows_or_decays_is_not_given_back() -> None:
    seen = pilots(_world(crossing=0.9), np.random.default_rng(0))
    asked = question(pilot_macs=10.0, trunks={"host": (3.0, 30.0), "final": (200.0,)}, decay=0.3)
    macs = {option.choice: option.macs for option in judge(asked, seen, num_draws=_DRAWS).options}
    assert macs[Choice(size="host")] == pytest.approx(BUDGET - 10 + 30)
    assert macs[Choice(size="final")] == pytest.approx(BUDGET - 10)
    assert macs[Choice(size="final", share=0.5)] == pytest.approx(BUDGET - 10 + 30)
    assert macs[Choice(size="final", share=0.1)] == pytest.approx(BUDGET - 10 + 3)


def test_hours_are_those_of_the_measured_speed_of_each_size() -> None:
    seen = [
        dataclasses.replace(one, seconds=one.macs * (4.0 if one.size == "final" else 2.0))
        for one in pilots(_world(crossing=0.9), np.random.default_rng(0))
    ]
    options = judge(question(macs=None, seconds=100.0), seen, num_draws=_DRAWS).options
    macs = {option.choice: option.macs for option in options}
    assert macs[Choice(size="host")] == pytest.approx(50)
    assert macs[Choice(size="final")] == pytest.approx(25)
    assert macs[Choice(size="final", share=0.5)] == pytest.approx(100 / 3)
    assert [option.seconds for option in options] == pytest.approx([100.0] * len(options))


def test_an_accuracy_is_predicted_as_its_error_and_stays_below_100_percent() -> None:
    seen = [
        dataclasses.replace(one, figure=1 - 0.01 * one.loss)
        for one in pilots(_world(crossing=0.9), np.random.default_rng(0))
    ]
    asked = dataclasses.replace(question(), headline=ACCURACY, num_examples=1000)
    plan = judge(asked, seen, num_draws=_DRAWS)
    assert all(0.9 < option.figure.low <= option.figure.high <= 1 for option in plan.options)


def test_a_run_far_longer_than_its_pilots_is_marked() -> None:
    seen = pilots(_world(crossing=0.9), np.random.default_rng(0))
    plan = judge(question(macs=10 * BUDGET), seen, num_draws=_DRAWS)
    assert plan.chosen.extrapolation > 4
    assert any("times as long" in warning for warning in plan.warnings)


def test_intervals_far_beyond_the_pilots_allow_for_curves_that_bend() -> None:
    seen = pilots(_world(crossing=0.9), np.random.default_rng(0), longest=1 / 16)
    found = forecast(question(), seen, num_draws=200)
    host = Choice(size="host")
    expected = found.shortfalls(host, np.array([BUDGET / 32, BUDGET / 16, BUDGET / 4, BUDGET]))
    fall = (expected[:, 0] - expected[:, 1]).mean()
    near, far = (
        (shown.high - np.quantile(expected[:, at], 0.9)) / 1.28
        for macs, at in ((BUDGET / 4, 2), (BUDGET, 3))
        for shown in [found.figure_of(host, macs)]
    )
    assert near < 0.05 * fall
    assert far == pytest.approx(2 * fall, rel=0.2)  # two doublings beyond four times the longest pilot


@pytest.mark.parametrize("is_accuracy", [False, True])
def test_options_far_beyond_the_pilots_differ_in_what_is_expected_by_what_their_regrets_differ(
    is_accuracy: bool,
) -> None:
    seen, asked = pilots(_world(crossing=0.9), np.random.default_rng(0), longest=1 / 16), question()
    if is_accuracy:
        seen = [dataclasses.replace(one, figure=1 - 0.2 * one.loss) for one in seen]
        asked = dataclasses.replace(asked, headline=ACCURACY, num_examples=1000)
    plan = judge(asked, seen, num_draws=_DRAWS)
    best = plan.options[0]
    for option in plan.options:
        assert option.figure.low < option.figure.expected < option.figure.high
        lost = asked.headline.sign * (best.figure.expected - option.figure.expected)
        assert lost == pytest.approx(option.regret - best.regret, abs=1e-9)
        if not is_accuracy:
            assert option.loss.expected == pytest.approx(option.figure.expected)


@pytest.mark.parametrize(("longest", "is_short"), [(1 / 4, False), (1 / 40, True)])
def test_pilots_that_end_within_the_first_epoch_are_warned_of(longest: float, is_short: bool) -> None:
    plan = judge(question(), pilots(_world(crossing=0.9), np.random.default_rng(0), longest=longest), num_draws=_DRAWS)
    assert any("within the first epoch" in warning for warning in plan.warnings) == is_short


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (lambda one: one.size != "host", "no training of the host"),
        (lambda one: one.macs == BUDGET / 8, "one budget only"),
    ],
)
def test_too_few_observations_are_refused(keep: object, message: str) -> None:
    seen = [one for one in pilots(_world(crossing=0.9), np.random.default_rng(0)) if keep(one)]  # type: ignore[operator]
    with pytest.raises(RunError, match=message):
        judge(question(), seen, num_draws=_DRAWS)


def test_pilots_that_spent_the_budget_are_refused() -> None:
    with pytest.raises(RunError, match="have spent the budget"):
        judge(question(pilot_macs=BUDGET), pilots(_world(crossing=0.9), np.random.default_rng(0)), num_draws=_DRAWS)


def test_a_size_without_observations_is_left_out_with_a_warning() -> None:
    seen = [one for one in pilots(_world(crossing=0.9), np.random.default_rng(0)) if one.size != "between"]
    plan = judge(question(), seen, num_draws=_DRAWS)
    assert Choice(size="between") not in [option.choice for option in plan.options]
    assert any(SIZES[1].label in warning for warning in plan.warnings)


@pytest.mark.long
@pytest.mark.parametrize(
    ("longest", "num_worlds", "most_inside", "most_regret"), [(1 / 4, 24, 0.93, 0.002), (1 / 40, 12, 1.0, 0.003)]
)
def test_intervals_hold_and_regret_is_small_in_worlds_whose_curves_are_known(
    longest: float, num_worlds: int, most_inside: float, most_regret: float
) -> None:
    inside, regrets, fixed = [], [], {"host": [], "between": [], "final": [], "grown": []}
    for index in range(num_worlds):
        rng = np.random.default_rng(index)
        world = random_world(rng)
        plan = judge(question(), pilots(world, rng, longest=longest), num_draws=_DRAWS)
        truth = {option.choice: world.loss(option.choice, option.macs) for option in plan.options}
        for option in plan.options:
            shown: Observation = world.run(option.choice, option.macs, rng=rng)
            inside.append(option.figure.low <= shown.figure <= option.figure.high)
        regrets.append(truth[plan.recommended] - min(truth.values()))
        for name, lost in fixed.items():
            always = Choice(size="final", share=0.3) if name == "grown" else Choice(size=name)
            lost.append(truth[always] - min(truth.values()))
    assert 0.7 <= np.mean(inside) <= most_inside
    assert np.mean(regrets) < most_regret
    assert all(np.mean(regrets) < np.mean(lost) / 2 for lost in fixed.values())
