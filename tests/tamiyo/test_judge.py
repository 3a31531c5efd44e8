from __future__ import annotations

import pytest
import torch
from scipy import stats

from esper.tamiyo import judge, significance_of


def test_the_bound_is_students_one_sided_lower_bound_of_the_paired_difference() -> None:
    generator = torch.Generator().manual_seed(0)
    off, on = torch.rand(50, generator=generator), torch.rand(50, generator=generator)
    verdict = judge(off, on, improvement_threshold=0.0, significance=0.05)
    difference = (off.double() - on.double()).numpy()
    expected = stats.ttest_1samp(difference, 0.0, alternative="greater").confidence_interval(0.95).low
    assert verdict.lower_bound == pytest.approx(expected, rel=1e-9)
    assert verdict.gain == pytest.approx(difference.mean())
    assert verdict.num_examples == 50


def test_a_module_is_kept_only_if_the_bound_exceeds_the_relative_threshold() -> None:
    off = torch.linspace(1.0, 2.0, 100)
    on = off - 0.1 + torch.linspace(-0.01, 0.01, 100)
    assert judge(off, on, improvement_threshold=0.02, significance=0.05).kept
    strict = judge(off, on, improvement_threshold=0.08, significance=0.05)
    assert strict.threshold == pytest.approx(0.08 * 1.5)
    assert not strict.kept


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_nan_or_inf_loss_is_never_kept(bad: float) -> None:
    off, on = torch.full((10,), 2.0), torch.full((10,), 1.0)
    for broken_off, broken_on in ((off.clone().index_fill_(0, torch.tensor([3]), bad), on), (off, on * bad)):
        assert not judge(broken_off, broken_on, improvement_threshold=0.0, significance=0.05).kept


def test_modules_without_effect_are_kept_at_most_as_often_as_the_significance_allows() -> None:
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(2, 2000, 200, generator=generator)
    kept = sum(
        judge(off, on, improvement_threshold=0.0, significance=0.05).kept for off, on in zip(*losses, strict=True)
    )
    assert 0.05 * 2000 - 3.5 * 10 < kept < 0.05 * 2000 + 3.5 * 10  # 3.5 standard errors


def test_significances_of_all_verdicts_sum_to_one_minus_the_confidence() -> None:
    spent = [significance_of(k, confidence=0.95) for k in range(1, 100_000)]
    assert sum(spent) == pytest.approx(0.05, rel=1e-4)
    assert spent[0] > spent[1] > spent[2]


def test_rent_raises_the_threshold() -> None:
    off, on = torch.full((100,), 1.0), torch.linspace(0.94, 0.96, 100)
    free = judge(off, on, improvement_threshold=0.02, significance=0.05)
    renting = judge(off, on, improvement_threshold=0.02, significance=0.05, rent=0.04)
    assert (free.kept, renting.kept) == (True, False)
    assert renting.threshold == pytest.approx(0.06)
