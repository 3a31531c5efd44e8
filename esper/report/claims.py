"""Claims: is one arm better than another? The verdict is yes, no, or not shown.

Runs are paired by seed; the difference is in test accuracy at the last step, or in what else the task leads with, as an
improvement; then 0.2 % of the other arm's mean take the place of 0.2 points. The cost is all compute of a run, growth
included; against the final network trained for as many seconds as the grown run, it is wall time.

- **yes**: the accuracy is higher (paired t test, Holm-adjusted p < 0.05, 95 % interval above 0) at a cost at most 2 %
  above the other arm's; or the cost is at least 5 % lower and the accuracy at most 0.2 points lower (one-sided,
  Holm-adjusted p < 0.05, so that the 95 % bound lies above -0.2 points). The second way is closed against arms that
  were given the grown run's budget: a difference in cost is then an error, not a saving.
- **no**: the 95 % interval lies below 0; or it excludes a gain of 0.2 points and less than 5 % was saved; or no gain
  was shown and the cost was over 2 % higher. A "no" claims nothing for growth, so nothing is adjusted.
- **not shown**: everything else, and every claim with fewer than 12 pairs. A higher accuracy at a higher cost is not
  shown either: it takes an arm of equal budget to tell whether the compute alone explains it.

Its cost decides which of the two ways to a yes a claim has, and so which p value; Holm adjusts these over all claims.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from esper.configs.comparison import ARMS
from esper.report import statistics
from esper.report.arms import Arm, Comparison
from esper.report.scale import MARGIN, Scale

__all__ = [
    "EQUAL",
    "LESS",
    "MIN_PAIRS",
    "Claim",
    "Spent",
    "adjusted_p",
    "decide",
    "make_claims",
    "p_text",
]

MIN_PAIRS = 12
EQUAL, LESS = 0.02, 0.05
"""Relative costs: higher by `EQUAL` still counts as equal; lower by `LESS`, "not worse" is enough for a yes."""
_SIGNIFICANCE = 0.05


class Spent(NamedTuple):
    """The cost of one arm relative to another.

    Attributes:
        more: cost ratio - 1; nan without pairs.
        resource: "compute" or "wall time".
        is_shared: whether both arms were given the same budget.
    """

    more: float
    resource: str = "compute"
    is_shared: bool = False

    @property
    def is_by_margin(self) -> bool:
        """Whether the cost is so much lower that "not worse" is enough for a yes."""
        return self.more <= -LESS and not self.is_shared

    @property
    def text(self) -> str:
        """E.g. `80.0 % of the compute`."""
        return f"{100 * (1 + self.more):.1f} % of the {self.resource}"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Arm `ours` against arm `other`, by their labels.

    Attributes:
        words: the claim in words.
        budget: the budget of both arms, see `Arm`; empty if there is one or they differ.
        seeds: seeds with a finished run in both arms.
        unpaired: seeds with a finished run in one of them.
        differences: (n,) by how much ours is better, by seed: its accuracy minus that of the other.
        margin: the loss that still counts as not worse.
        scale: how they are written.
        test: paired t test against 0, and against `-margin`.
        bootstrap: bootstrap interval of the mean difference; nan for n < `statistics.MIN_RUNS`.
        wilcoxon_p: Wilcoxon's test, a check on the t test.
        p: Holm-adjusted p value that the verdict uses.
        spent: cost of ours relative to the other.
        verdict: yes, no, or not shown.
        reason: explains the verdict, half a sentence.
    """

    ours: str
    other: str
    words: str
    budget: str
    seeds: Sequence[int]
    unpaired: Sequence[int]
    differences: NDArray[np.float64]
    margin: float
    scale: Scale
    test: statistics.PairedT
    bootstrap: tuple[float, float]
    wilcoxon_p: float
    p: float
    spent: Spent
    verdict: str
    reason: str

    @property
    def title(self) -> str:
        """The claim in words, with the budget."""
        return f"{self.words} at {self.budget}" if self.budget else self.words

    @property
    def sentence(self) -> str:
        """The verdict in one sentence."""
        return f"{self.title}: {self.verdict}, {self.reason}."

    @property
    def warning(self) -> str:
        """A sentence if the budgets should be equal and are not; else empty."""
        if not self.spent.is_shared or not abs(self.spent.more) > EQUAL:
            return ""
        return f"{self.title}: the budgets should be equal, but the first took {self.spent.text}."


def make_claims(comparison: Comparison) -> list[Claim]:
    """The claims of a comparison; p values are adjusted over all of them."""
    pairs, scale = list(comparison.pairs), Scale(comparison.headline)
    seeds = [sorted(ours.runs.keys() & other.runs.keys()) for ours, other in pairs]
    differences = [
        np.array([scale.gain(ours.runs[seed].figure, other.runs[seed].figure) for seed in common])
        for (ours, other), common in zip(pairs, seeds, strict=True)
    ]
    margins = [scale.margin(other.figure) for _, other in pairs]
    # Tested in units of the margin: what counts as rounding error there holds for errors of any size.
    units = [margin / MARGIN or 1.0 for margin in margins]
    relative = [values / unit for values, unit in zip(differences, units, strict=True)]
    tests = [
        _in_units(statistics.paired_t(values, margin=MARGIN), unit)
        for values, unit in zip(relative, units, strict=True)
    ]
    spent = [_spent(*pair, seeds=common, is_fair=comparison.is_fair) for pair, common in zip(pairs, seeds, strict=True)]
    p = adjusted_p(np.array([float(t.p) for t in tests]), np.array([float(t.p_not_worse) for t in tests]), spent)
    claims: list[Claim] = []
    for index, (ours, other) in enumerate(pairs):
        is_shared = ours.budget == other.budget
        verdict, reason = decide(
            tests[index],
            num_pairs=len(seeds[index]),
            p=float(p[index]),
            spent=spent[index],
            scale=scale,
            margin=margins[index],
        )
        claims.append(
            Claim(
                ours=ours.label,
                other=other.label,
                words=f"{ours.words} against {other.words}" if is_shared else f"{ours.title} against {other.title}",
                budget=ours.budget if is_shared else "",
                seeds=seeds[index],
                unpaired=sorted(ours.runs.keys() ^ other.runs.keys()),
                differences=differences[index],
                margin=margins[index],
                scale=scale,
                test=tests[index],
                bootstrap=_bootstrap(relative[index], units[index]),
                wilcoxon_p=statistics.wilcoxon_p(relative[index]),
                p=float(p[index]),
                spent=spent[index],
                verdict=verdict,
                reason=reason,
            )
        )
    return claims


def _in_units(test: statistics.PairedT, unit: float) -> statistics.PairedT:
    """A test of differences that were divided by a unit, as one of the differences."""
    scaled = {name: getattr(test, name) * unit for name in ("mean", "low", "high", "lower_bound")}
    return test._replace(**scaled)


def _bootstrap(relative: NDArray[np.float64], unit: float) -> tuple[float, float]:
    low, high = statistics.bootstrap_interval(relative)
    return low * unit, high * unit


def adjusted_p(p: NDArray[np.float64], p_not_worse: NDArray[np.float64], spent: Sequence[Spent]) -> NDArray[np.float64]:
    """Holm-adjusted p values (..., claims), each of the test that the claim's cost selects.

    Adjusting the two tests in two families would allow too many false yeses: a rejection that cannot give a yes would
    lower the bar for the other claims.
    """
    return statistics.holm(np.where([cost.is_by_margin for cost in spent], p_not_worse, p))


def decide(
    test: statistics.PairedT,
    *,
    num_pairs: int,
    p: float,
    spent: Spent,
    scale: Scale = Scale(),  # noqa: B008  (frozen)
    margin: float = MARGIN,
) -> tuple[str, str]:
    """The verdict and its reason, by the rules in the module's docstring.

    Args:
        test: test of the differences.
        num_pairs: number of differences.
        p: adjusted p: one-sided against `-margin` if `spent.is_by_margin`, else two-sided against 0.
        spent: relative cost.
        scale: how differences are written.
        margin: the loss that still counts as not worse.
    """
    if num_pairs == 0:
        return "not shown", "no seed has a finished run in both arms"
    difference = scale.phrase(float(test.mean))
    summary = f"{difference} at {spent.text}"
    if num_pairs < MIN_PAIRS:
        return "not shown", f"{num_pairs} of at least {MIN_PAIRS} pairs: {summary}"
    interval = f"95 % interval {scale.signed_range(test.low, test.high)}"
    if spent.is_by_margin:
        allowed = f"{-100 * MARGIN:+.1f}" if scale.info.unit == "%" else scale.signed(-margin)
        bound = f"95 % bound {scale.signed(test.lower_bound)}{scale.unit}, allowed {allowed}"
        if p < _SIGNIFICANCE:
            return "yes", f"not worse ({bound}) at {spent.text} ({interval}, p {p_text(p)})"
        return (
            ("no", f"{summary} ({interval})") if test.high < 0 else ("not shown", f"may be worse ({bound}): {summary}")
        )
    summary += f" ({interval}, p {p_text(p)})"
    is_higher = p < _SIGNIFICANCE and float(test.low) > 0
    more = f"{100 * spent.more:.1f} % more {spent.resource}"
    if is_higher and spent.more <= EQUAL:
        return "yes", summary
    if is_higher:
        return "not shown", f"{difference}, but {more}; compare with an arm of equal {spent.resource}"
    if test.high < 0 and p < _SIGNIFICANCE:
        return "no", summary
    if test.high < 0 or (test.high < margin and spent.more > -LESS):
        return "no", f"a gain of {scale.margin_text} is ruled out: {summary}"
    if spent.more > EQUAL:
        return "no", f"{more} and no gain was shown: {summary}"
    return "not shown", f"the difference may be chance: {summary}"


def _spent(ours: Arm, other: Arm, *, seeds: Sequence[int], is_fair: bool) -> Spent:
    budget = ARMS[other.name].budget if is_fair else "epochs"
    is_time = budget == "seconds"
    metric = "seconds" if is_time else "total_macs"
    cost, base = (sum(arm.runs[seed].metric(metric) for seed in seeds) for arm in (ours, other))
    return Spent(
        more=cost / base - 1 if base else float("nan"),
        resource="wall time" if is_time else "compute",
        is_shared=budget != "epochs",
    )


def p_text(p: float) -> str:
    """A p value to three decimals; nan becomes `–`."""
    if math.isnan(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
