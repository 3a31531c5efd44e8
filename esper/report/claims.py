"""The verdict on one arm against another: yes, no, or not shown.

Differences are paired by seed, in test accuracy at the last step; compute is all that was spent, growth included.

- **yes**: the accuracy is higher (paired t test, Holm-adjusted p < 0.05, 95 % interval above 0) at no more than 2 %
  more compute than the other arm; or it is not worse by more than 0.2 points (one-sided, Holm-adjusted p < 0.05, so
  that the 95 % bound lies above -0.2 points) at 5 % less compute or less still.
- **no**: the accuracy is lower (Holm-adjusted p < 0.05); or the 95 % interval leaves no room for a gain of 0.2 points
  (a "no" claims nothing for growth, so nothing is adjusted); or no gain was shown although it cost over 2 % more.
- **not shown**: everything else, and whatever has fewer than 12 pairs. A higher accuracy that cost more compute is
  not shown either: an arm of equal compute has to say whether the compute alone would have done it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esper.report import statistics
from esper.report.arms import Arm, Comparison

__all__ = ["EQUAL", "LESS", "MARGIN", "MIN_PAIRS", "Claim", "claims", "decide", "headline", "p_text"]

MIN_PAIRS = 12
MARGIN = 0.002
"""Test accuracy that an arm may lack and still count as not worse."""
EQUAL, LESS = 0.02, 0.05
"""More compute that still counts as equal, and how much less it takes to be allowed the margin."""
_LEVEL = 0.05
_EQUAL_COMPUTE = ("static_flops", "final_flops")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What is said of arm `ours` against arm `other`.

    Attributes:
        seeds: those that both arms have a finished run of.
        unpaired: those that only one of them has.
        differences: (n,) accuracy of ours minus that of the other, by seed.
        test: the paired t test against 0, and against `-MARGIN`.
        bootstrap: interval of the mean difference; nan for n < 2.
        wilcoxon_p: the check on the t test.
        p: two-sided, Holm-adjusted over all claims.
        p_not_worse: one-sided, Holm-adjusted over all claims.
        cost: how much more compute ours spent, as a fraction of the other's; nan without pairs.
        verdict: yes, no, or not shown.
        reason: why, half a sentence.
    """

    ours: str
    other: str
    seeds: Sequence[int]
    unpaired: Sequence[int]
    differences: NDArray[np.float64]
    test: statistics.PairedT
    bootstrap: tuple[float, float]
    wilcoxon_p: float
    p: float
    p_not_worse: float
    cost: float
    verdict: str
    reason: str

    @property
    def sentence(self) -> str:
        """The verdict in one sentence."""
        return f"{self.ours} against {self.other}: {self.verdict}, {self.reason}."


def claims(comparison: Comparison) -> list[Claim]:
    """The claims of a comparison; they are one family, over which p values are adjusted."""
    pairs = list(comparison.pairs)
    seeds = [sorted(ours.runs.keys() & other.runs.keys()) for ours, other in pairs]
    differences = [
        np.array([ours.runs[seed].accuracy - other.runs[seed].accuracy for seed in common])
        for (ours, other), common in zip(pairs, seeds, strict=True)
    ]
    tests = [statistics.paired_t(found, margin=MARGIN) for found in differences]
    p = statistics.holm(np.array([float(test.p) for test in tests]))
    p_not_worse = statistics.holm(np.array([float(test.p_not_worse) for test in tests]))
    made = []
    for index, (ours, other) in enumerate(pairs):
        test, cost = tests[index], _cost(ours, other, seeds[index])
        adjusted = {"p": float(p[index]), "p_not_worse": float(p_not_worse[index])}
        verdict, reason = decide(test, num_pairs=len(seeds[index]), cost=cost, **adjusted)
        claim = Claim(
            ours=ours.label,
            other=other.label,
            seeds=seeds[index],
            unpaired=sorted(ours.runs.keys() ^ other.runs.keys()),
            differences=differences[index],
            test=test,
            bootstrap=statistics.bootstrap_interval(differences[index]),
            wilcoxon_p=statistics.wilcoxon_p(differences[index]),
            cost=cost,
            verdict=verdict,
            reason=reason,
            **adjusted,
        )
        made.append(claim)
    return made


def decide(test: statistics.PairedT, *, num_pairs: int, p: float, p_not_worse: float, cost: float) -> tuple[str, str]:
    """The verdict and its reason, as the module says.

    Args:
        test: of the differences in accuracy.
        num_pairs: how many there are.
        p: its two-sided p, adjusted.
        p_not_worse: its one-sided p against `-MARGIN`, adjusted.
        cost: how much more compute was spent, as a fraction.
    """
    if num_pairs == 0:
        return "not shown", "no seed has a finished run in both arms"
    mean = float(test.mean)
    found = f"{_points(mean)} at {_compute(cost)}"
    if num_pairs < MIN_PAIRS:
        return "not shown", f"needs at least {MIN_PAIRS} pairs; the {num_pairs} there say {found}"
    found += f" (95 % interval {100 * test.low:+.2f} to {100 * test.high:+.2f}, p {p_text(p)})"
    is_higher = p < _LEVEL and float(test.low) > 0
    if is_higher and cost <= EQUAL:
        return "yes", found
    if p_not_worse < _LEVEL and cost <= -LESS:
        bound = f"at worst {100 * test.lower_bound:+.2f} points, where {-100 * MARGIN:+.1f} is allowed"
        return "yes", f"not worse, {bound}, at {_compute(cost)}"
    if p < _LEVEL and mean < 0:
        return "no", found
    if test.high < MARGIN and cost > -LESS:
        return "no", f"a gain of {100 * MARGIN:.1f} points is ruled out: {found}"
    if is_higher:
        better = f"it is {100 * mean:.2f} points better and cost {100 * cost:.1f} % more compute"
        return "not shown", f"{better}; compare with an arm of equal compute"
    if cost > EQUAL:
        return "no", f"it cost {100 * cost:.1f} % more compute and no gain was shown: {found}"
    return "not shown", f"the difference may be chance: {found}"


def headline(comparison: Comparison, made: Sequence[Claim]) -> str:
    """The comparison in one sentence; whether growing paid is for the arms of equal compute to say."""
    if not made:
        return "Nothing is claimed about these runs."
    if not comparison.is_fair:
        if len(made) == 1:
            return f"{made[0].sentence[0].upper()}{made[0].sentence[1:]}"
        counts = [(sum(claim.verdict == verdict for claim in made), verdict) for verdict in ("yes", "no", "not shown")]
        told = ", ".join(f"{count} {verdict}" for count, verdict in counts if count)
        return f"{len(made)} arms against {comparison.baseline}: {told}."
    bars = {claim.other: claim for claim in made if claim.other in _EQUAL_COMPUTE}
    told = "; ".join(f"against {other} {claim.verdict}" for other, claim in bars.items())
    missing = [other for other in _EQUAL_COMPUTE if other not in bars]
    told += "; " * bool(told and missing) + "; ".join(f"{other} is missing" for other in missing)
    verdicts = [claim.verdict for claim in bars.values()]
    if "no" in verdicts:
        answer = "No"
    elif verdicts == ["yes"] * len(_EQUAL_COMPUTE):
        answer = "Yes"
    else:
        answer = "Not shown"
    few = min((len(claim.seeds) for claim in bars.values()), default=MIN_PAIRS)
    if answer == "Not shown" and few < MIN_PAIRS:
        told += f" (at least {MIN_PAIRS} pairs are needed, {few} {'is' if few == 1 else 'are'} there)"
    return f"Did growing pay? {answer}: {told}."


def _cost(ours: Arm, other: Arm, seeds: Sequence[int]) -> float:
    spent, base = (sum(arm.runs[seed].flops for seed in seeds) for arm in (ours, other))
    return spent / base - 1 if base else float("nan")


def _points(mean: float) -> str:
    return f"{100 * mean:+.2f} points of test accuracy"


def _compute(cost: float) -> str:
    return f"{100 * (1 + cost):.1f} % of the compute"


def p_text(p: float) -> str:
    """A p value to three decimals; nan is not known."""
    if math.isnan(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
