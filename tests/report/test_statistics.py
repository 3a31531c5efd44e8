from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from esper.report import statistics
from esper.report.claims import Spent, adjusted_p, decide
from esper.report.scale import MARGIN
from esper.report.statistics import PairedT, bootstrap_interval, holm, mean_interval, paired_t, wilcoxon_p

# Student's sleep data (1908): extra hours of sleep of ten patients under two drugs.
FIRST = np.array([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0])
SECOND = np.array([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4])


def test_the_paired_t_test_agrees_with_scipy_and_with_the_published_p() -> None:
    ours, theirs = paired_t(SECOND - FIRST), stats.ttest_rel(SECOND, FIRST)
    assert ours.p == pytest.approx(theirs.pvalue)
    assert ours.p == pytest.approx(0.00283, abs=1e-5)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))


def test_being_not_worse_is_the_one_sided_test_against_the_margin() -> None:
    ours = paired_t(FIRST, margin=0.5)
    theirs = stats.ttest_1samp(FIRST, -0.5, alternative="greater")
    assert ours.p_not_worse == pytest.approx(theirs.pvalue)
    assert ours.lower_bound == pytest.approx(theirs.confidence_interval(0.95).low)


@pytest.mark.parametrize("values", [[0.25], [0.25, 0.25], [0.0, 0.5]])
def test_one_pair_or_two_give_a_mean_and_neither_an_interval_nor_a_p_value(values: list[float]) -> None:
    differences = np.array(values)
    test = paired_t(differences, margin=MARGIN)
    assert test.mean == 0.25
    assert np.isnan([test.low, test.high, test.p, test.lower_bound, test.p_not_worse, wilcoxon_p(differences)]).all()
    mean, half = mean_interval(differences)
    assert mean == 0.25
    assert np.isnan([half, *bootstrap_interval(differences)]).all()


def test_three_pairs_give_an_interval() -> None:
    differences = np.array([0.1, 0.2, 0.3])
    assert mean_interval(differences) == pytest.approx((0.2, 4.303 * 0.1 / np.sqrt(3)), abs=1e-4)
    assert not np.isnan([*paired_t(differences), *bootstrap_interval(differences), wilcoxon_p(differences)]).any()


@pytest.mark.parametrize(("difference", "p"), [(0.0, 1.0), (0.1, 0.0)])
def test_differences_that_are_all_the_same_leave_no_doubt(difference: float, p: float) -> None:
    same = np.full(12, difference + 0.3) - 0.3  # with rounding
    test = paired_t(same, margin=MARGIN)
    assert test.p == pytest.approx(p)
    assert test.low == test.high == pytest.approx(difference)
    assert bootstrap_interval(same) == pytest.approx((difference, difference))


def test_of_differences_that_are_not_all_known_nothing_is_known() -> None:
    unknown = np.array([0.3, 0.4, np.nan])
    test = paired_t(np.stack([unknown, [0.3, 0.4, 0.5]]), margin=MARGIN)
    assert np.isnan([field[0] for field in test]).all()
    assert float(test.p[1]) == pytest.approx(stats.ttest_1samp([0.3, 0.4, 0.5], 0).pvalue)
    found, _ = decide(
        PairedT(*(field[0] for field in test)), num_pairs=12, p=float(test.p_not_worse[0]), spent=Spent(-0.5)
    )
    assert found == "not shown"


def test_the_bootstrap_interval_is_that_of_scipy_and_the_same_every_time() -> None:
    low, high = bootstrap_interval(SECOND - FIRST)
    assert bootstrap_interval(SECOND - FIRST) == (low, high)
    theirs = stats.bootstrap((SECOND - FIRST,), np.mean, n_resamples=20_000, random_state=1).confidence_interval
    assert (low, high) == pytest.approx(tuple(theirs), abs=0.06)


def test_the_bootstrap_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    draws = np.random.default_rng(3).normal(0.5, 1.0, (60, 25))
    covered = [low <= 0.5 <= high for low, high in map(bootstrap_interval, draws)]
    assert np.mean(covered) > 0.83  # 95 %, less what 60 draws and 25 pairs may lack


def test_wilcoxon_takes_equal_differences_as_ties_though_their_last_bits_differ() -> None:
    differences = np.array([0.3 - 0.2, 0.1, 0.2 - 0.1, 0.4 - 0.3, -0.2, 0.5])
    assert wilcoxon_p(differences) == stats.wilcoxon([0.1, 0.1, 0.1, 0.1, -0.2, 0.5]).pvalue
    assert wilcoxon_p(np.zeros(5)) == 1.0


def test_holm_gives_the_worked_example_and_passes_over_what_is_not_known() -> None:
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    adjusted = holm(np.array([0.01, np.nan]))
    assert adjusted[0] == pytest.approx(0.02)
    assert np.isnan(adjusted[1])


def family_verdicts(differences: np.ndarray, spent: list[Spent]) -> np.ndarray:
    """Verdicts (simulations, claims) on differences (simulations, claims, n)."""
    tests = paired_t(differences, margin=MARGIN)
    p = adjusted_p(tests.p, tests.p_not_worse, spent)
    return np.array(
        [
            [
                decide(
                    PairedT(*(field[i, j] for field in tests)),
                    num_pairs=differences.shape[-1],
                    p=p[i, j],
                    spent=spent[j],
                )[0]
                for j in range(differences.shape[1])
            ]
            for i in range(len(differences))
        ]
    )


@pytest.mark.parametrize("num_cheaper", [0, 3, 7], ids=["none cheaper", "some cheaper", "all cheaper"])
@pytest.mark.parametrize("noise", [0.0005, 0.004])
def test_at_most_one_family_of_claims_in_twenty_holds_a_false_yes(num_cheaper: int, noise: float) -> None:
    num_families, num_claims, n = 1200, 7, 12
    random = np.random.default_rng(7)
    spent = [Spent(-0.2 if claim < num_cheaper else 0.0) for claim in range(num_claims)]
    # The worst cases of a yes being false: worse by the margin where that is allowed, elsewhere no gain.
    true = np.array([-MARGIN if s.is_by_margin else 0.0 for s in spent])[:, None]
    # The grown arm is in every claim, so that the claims of a family are correlated.
    grown = random.normal(0, noise, (num_families, 1, n))
    differences = true + grown - random.normal(0, noise, (num_families, num_claims, n))
    false = (family_verdicts(differences, spent) == "yes").any(axis=1).mean()
    assert 0 < false <= 0.05 + 1.645 * np.sqrt(0.05 * 0.95 / num_families)


def test_the_t_test_on_nulls_is_wrong_as_often_as_it_says() -> None:
    p = statistics.paired_t(np.random.default_rng(1).normal(0, 1, (20_000, 12))).p
    assert np.mean(p < 0.05) == pytest.approx(0.05, abs=0.005)


@pytest.mark.parametrize(("mean", "verdict"), [(-0.006, "no"), (-0.002, "not shown"), (0.001, "not shown")])
def test_a_gain_that_the_interval_rules_out_is_a_no_however_many_claims_there_are(mean: float, verdict: str) -> None:
    spread = np.linspace(-1, 1, 12)
    test = paired_t(mean + 0.012 * spread, margin=MARGIN)
    found, reason = decide(test, num_pairs=12, p=0.5, spent=Spent(0.0))
    assert found == verdict
    assert ("ruled out" in reason) == (float(test.high) < MARGIN)
