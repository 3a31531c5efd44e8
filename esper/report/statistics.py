"""Statistics of paired runs: functions of arrays; `...` in a shape stands for leading axes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

__all__ = ["MIN_RUNS", "PairedT", "bootstrap_interval", "holm", "mean_interval", "paired_t", "wilcoxon_p"]

Floats = NDArray[np.float64]

MIN_RUNS = 3
"""Runs, or pairs of them, below which there is no interval and no p value: those of two values say next to nothing (the
t interval of an accuracy often exceeds 100 %), or, if the values happen to be equal, leave no doubt where there is."""
_CONFIDENCE = 0.95
_NUM_RESAMPLES = 9999
_SAME = 1e-12
"""Variation of accuracy differences below this is rounding error."""


class PairedT(NamedTuple):
    """A paired t test; every field has the shape of the leading axes, and all but the mean are nan below `MIN_RUNS`.

    `p`: two-sided, against a mean of 0. `low`, `high`: 95 % interval of the mean. `p_not_worse`: one-sided, against a
    mean of `-margin` or less. `lower_bound`: one-sided 95 % bound of the mean.
    """

    mean: Any
    low: Any
    high: Any
    p: Any
    lower_bound: Any
    p_not_worse: Any


def mean_interval(values: Floats) -> tuple[float, float]:
    """Mean of (n,) values and half the width of its 95 % t interval, which is nan for n < `MIN_RUNS`."""
    if len(values) < MIN_RUNS:
        return float(np.mean(values)) if len(values) else float("nan"), float("nan")
    half = stats.t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1) * stats.sem(values)
    return float(np.mean(values)), float(half)


def paired_t(differences: Floats, *, margin: float = 0.0) -> PairedT:
    """Paired t test of differences (..., n); if they are all equal, p is 0 or 1, and nan if one of them is nan."""
    n = differences.shape[-1]
    mean = differences.mean(axis=-1) if n else np.full(differences.shape[:-1], np.nan)
    if n < MIN_RUNS:
        unknown = np.full_like(mean, np.nan)
        return PairedT(mean, unknown, unknown, unknown, unknown, unknown)
    spread = np.ptp(differences, axis=-1)
    error = np.where(spread <= _SAME, 0.0, differences.std(axis=-1, ddof=1) / np.sqrt(n))
    exact = np.where(np.abs(mean) <= _SAME, 0.0, mean)

    def score(above: Floats) -> Floats:
        certain = np.where(above == 0, 0.0, np.copysign(np.inf, above))
        return np.where(error == 0, certain, above / np.where(error == 0, 1.0, error))

    student = stats.t(n - 1)
    half = student.ppf((1 + _CONFIDENCE) / 2) * error
    return PairedT(
        mean=mean,
        low=mean - half,
        high=mean + half,
        p=2 * student.sf(np.abs(score(exact))),
        lower_bound=mean - student.ppf(_CONFIDENCE) * error,
        p_not_worse=student.sf(score(exact + margin)),
    )


def bootstrap_interval(differences: Floats) -> tuple[float, float]:
    """95 % BCa bootstrap interval of the mean of (n,) differences, with a fixed random seed; nan for n < `MIN_RUNS`.

    Source: Efron (1987), Better bootstrap confidence intervals.
    """
    if len(differences) < MIN_RUNS:
        return float("nan"), float("nan")
    if np.ptp(differences) <= _SAME:
        return float(differences[0]), float(differences[0])
    interval = stats.bootstrap(
        (differences,),
        np.mean,
        confidence_level=_CONFIDENCE,
        n_resamples=_NUM_RESAMPLES,
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def wilcoxon_p(differences: Floats) -> float:
    """Two-sided p of Wilcoxon's signed-rank test on (n,) differences, of any distribution; nan for n < `MIN_RUNS`."""
    if len(differences) < MIN_RUNS:
        return float("nan")
    if np.all(np.abs(differences) <= _SAME):
        return 1.0
    # Equal differences may differ in the last bit, which must not change their ranks.
    return float(stats.wilcoxon(np.round(differences, 12)).pvalue)


def holm(p: Floats) -> Floats:
    """Holm-adjusted p values of families (..., k); nan counts as 1 and stays nan.

    Source: Holm (1979), A simple sequentially rejective multiple test procedure.
    """
    known = np.where(np.isnan(p), 1.0, p)
    order = np.argsort(known, axis=-1, kind="stable")
    steps = p.shape[-1] - np.arange(p.shape[-1])
    ranked = np.maximum.accumulate(np.take_along_axis(known, order, axis=-1) * steps, axis=-1)
    adjusted = np.empty_like(known)
    np.put_along_axis(adjusted, order, np.minimum(ranked, 1.0), axis=-1)
    return np.where(np.isnan(p), np.nan, adjusted)
