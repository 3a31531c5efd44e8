"""The verdict on one arm against another: yes, no, or not shown.

Differences are paired by seed, in test accuracy at the last step. The cost is all the compute that was spent, growth
included; against `final_seconds`, which trains for as long as the grown run took, it is wall time.

- **yes**: the accuracy is higher (paired t test, Holm-adjusted p < 0.05, 95 % interval above 0) at no more than 2 %
  more cost than the other arm; or the cost is at least 5 % less and the accuracy not worse by more than 0.2 points
  (one-sided, Holm-adjusted p < 0.05, so that the 95 % bound lies above -0.2 points). The latter never counts against
  an arm that is given the grown run's own budget: had it spent more by mistake, less would be no merit.
- **no**: the 95 % interval lies below 0; or, at less than 5 % saved, it leaves no room for a gain of 0.2 points; or
  no gain was shown although it cost over 2 % more. A "no" claims nothing for growth, so nothing is adjusted.
- **not shown**: everything else, and whatever has fewer than 12 pairs. A higher accuracy that cost more is not shown
  either: an arm of equal budget has to say whether the compute alone would have done it.

A claim has one way to a yes, by its cost, and one p value that goes with it; these are the family that Holm adjusts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from esper.report import statistics
from esper.report.arms import Arm, Comparison

__all__ = [
    "EQUAL",
    "LESS",
    "MARGIN",
    "MIN_PAIRS",
    "Claim",
    "Spent",
    "adjusted_p",
    "claims",
    "decide",
    "headline",
    "p_text",
]

MIN_PAIRS = 12
MARGIN = 0.002
"""Test accuracy that an arm may lack and still count as not worse."""
EQUAL, LESS = 0.02, 0.05
"""More compute that still counts as equal, and how much less it takes to be allowed the margin."""
_LEVEL = 0.05
_EQUAL_COMPUTE = ("static_flops", "final_flops")
_EQUAL_BUDGET = (*_EQUAL_COMPUTE, "final_seconds")
_NO_DEARER = ("static", *_EQUAL_BUDGET)
"""Arms without growth that spend no more than grown; losing to one of them is not paying."""


class Spent(NamedTuple):
    """What one arm cost against another.

    Attributes:
        more: how much more than the other, as a fraction; nan without pairs.
        resource: what it is of, compute or wall time.
        is_shared: whether both arms were given the same budget of it.
    """

    more: float
    resource: str = "compute"
    is_shared: bool = False

    @property
    def is_by_margin(self) -> bool:
        """Whether it is so much less that an accuracy which is not worse is enough."""
        return self.more <= -LESS and not self.is_shared

    @property
    def text(self) -> str:
        """Half a sentence: `80.0 % of the compute`."""
        return f"{100 * (1 + self.more):.1f} % of the {self.resource}"


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
        p: of the way to a yes that is open to the claim, Holm-adjusted over all claims.
        spent: what ours cost.
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
    spent: Spent
    verdict: str
    reason: str

    @property
    def sentence(self) -> str:
        """The verdict in one sentence."""
        return f"{self.ours} against {self.other}: {self.verdict}, {self.reason}."

    @property
    def warning(self) -> str:
        """A sentence if the two budgets should be equal and are not; else empty."""
        if not self.spent.is_shared or not abs(self.spent.more) > EQUAL:
            return ""
        return f"{self.ours} and {self.other} should have had the same budget: {self.ours} took {self.spent.text}."


def claims(comparison: Comparison) -> list[Claim]:
    """The claims of a comparison; they are one family, over which p values are adjusted."""
    pairs = list(comparison.pairs)
    seeds = [sorted(ours.runs.keys() & other.runs.keys()) for ours, other in pairs]
    differences = [
        np.array([ours.runs[seed].accuracy - other.runs[seed].accuracy for seed in common])
        for (ours, other), common in zip(pairs, seeds, strict=True)
    ]
    tests = [statistics.paired_t(found, margin=MARGIN) for found in differences]
    spent = [_spent(*pair, seeds=common, is_fair=comparison.is_fair) for pair, common in zip(pairs, seeds, strict=True)]
    p = adjusted_p(np.array([float(t.p) for t in tests]), np.array([float(t.p_not_worse) for t in tests]), spent)
    made = []
    for index, (ours, other) in enumerate(pairs):
        verdict, reason = decide(tests[index], num_pairs=len(seeds[index]), p=float(p[index]), spent=spent[index])
        claim = Claim(
            ours=ours.label,
            other=other.label,
            seeds=seeds[index],
            unpaired=sorted(ours.runs.keys() ^ other.runs.keys()),
            differences=differences[index],
            test=tests[index],
            bootstrap=statistics.bootstrap_interval(differences[index]),
            wilcoxon_p=statistics.wilcoxon_p(differences[index]),
            p=float(p[index]),
            spent=spent[index],
            verdict=verdict,
            reason=reason,
        )
        made.append(claim)
    return made


def adjusted_p(p: NDArray[np.float64], p_not_worse: NDArray[np.float64], spent: Sequence[Spent]) -> NDArray[np.float64]:
    """Holm-adjusted p values (..., claims) of families of claims: each by its way to a yes.

    Two families, one a way, would hold more false yeses than they say: a claim that is rejected in one of them, where
    its yes would not count, lowers the bar for the others.
    """
    return statistics.holm(np.where([cost.is_by_margin for cost in spent], p_not_worse, p))


def decide(test: statistics.PairedT, *, num_pairs: int, p: float, spent: Spent) -> tuple[str, str]:
    """The verdict and its reason, as the module says.

    Args:
        test: of the differences in accuracy.
        num_pairs: how many there are.
        p: its p, adjusted: one-sided against `-MARGIN` if `spent.is_by_margin`, else two-sided against 0.
        spent: what it cost.
    """
    if num_pairs == 0:
        return "not shown", "no seed has a finished run in both arms"
    found = f"{_points(float(test.mean))} at {spent.text}"
    if num_pairs < MIN_PAIRS:
        return "not shown", f"needs at least {MIN_PAIRS} pairs; the {num_pairs} there say {found}"
    bounds = f"95 % interval {100 * test.low:+.2f} to {100 * test.high:+.2f}"
    if spent.is_by_margin:
        bound = f"at worst {100 * test.lower_bound:+.2f} points, where {-100 * MARGIN:+.1f} is allowed"
        if p < _LEVEL:
            return "yes", f"not worse, {bound}, at {spent.text} ({bounds}, p {p_text(p)})"
        return ("no", f"{found} ({bounds})") if test.high < 0 else ("not shown", f"it may be worse, {bound}: {found}")
    found += f" ({bounds}, p {p_text(p)})"
    is_higher = p < _LEVEL and float(test.low) > 0
    more = f"it cost {100 * spent.more:.1f} % more {spent.resource}"
    if is_higher and spent.more <= EQUAL:
        return "yes", found
    if is_higher:
        return "not shown", f"{more} for its {_points(float(test.mean))}; compare with an arm of equal {spent.resource}"
    if test.high < 0 and p < _LEVEL:
        return "no", found
    if test.high < 0 or (test.high < MARGIN and spent.more > -LESS):
        return "no", f"a gain of {100 * MARGIN:.1f} points is ruled out: {found}"
    if spent.more > EQUAL:
        return "no", f"{more} and no gain was shown: {found}"
    return "not shown", f"the difference may be chance: {found}"


def headline(comparison: Comparison, made: Sequence[Claim]) -> str:
    """The comparison in one sentence.

    Growing paid if it beats both arms of equal compute, and no network that did not grow does as well for less.
    """
    if not made:
        return "Nothing is claimed about these runs."
    if not comparison.is_fair:
        if len(made) == 1:
            return made[0].sentence
        counts = [(sum(claim.verdict == verdict for claim in made), verdict) for verdict in ("yes", "no", "not shown")]
        told = ", ".join(f"{count} {verdict}" for count, verdict in counts if count)
        return f"{len(made)} arms against {comparison.baseline}: {told}."
    bars = {claim.other: claim for claim in made if claim.other in _EQUAL_COMPUTE}
    lost = [claim.other for claim in made if claim.other in _NO_DEARER and claim.verdict == "no"]
    told = "; ".join(f"against {c.other} {c.verdict}" for c in made if c.other in bars or c.other in lost)
    missing = [other for other in _EQUAL_COMPUTE if other not in bars]
    told += "; " * bool(told and missing) + "; ".join(f"{other} is missing" for other in missing)
    verdicts = [claim.verdict for claim in bars.values()]
    if lost:
        answer = "No"
    elif verdicts == ["yes"] * len(_EQUAL_COMPUTE):
        answer = "Yes"
    else:
        answer = "Not shown"
    few = min((len(claim.seeds) for claim in bars.values()), default=MIN_PAIRS)
    if answer == "Not shown" and few < MIN_PAIRS:
        told += f" (at least {MIN_PAIRS} pairs are needed, {few} {'is' if few == 1 else 'are'} there)"
    return f"Did growing pay? {answer}: {told}."


def _spent(ours: Arm, other: Arm, *, seeds: Sequence[int], is_fair: bool) -> Spent:
    is_time = is_fair and other.label == "final_seconds"
    took, base = (
        sum(arm.runs[seed].figure("seconds" if is_time else "total_macs") for seed in seeds) for arm in (ours, other)
    )
    return Spent(
        more=took / base - 1 if base else float("nan"),
        resource="wall time" if is_time else "compute",
        is_shared=is_fair and other.label in _EQUAL_BUDGET,
    )


def _points(mean: float) -> str:
    return f"{100 * mean:+.2f} points of test accuracy"


def p_text(p: float) -> str:
    """A p value to three decimals; nan is not known."""
    if math.isnan(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
