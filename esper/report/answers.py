"""Did growing pay? The answer of a fair comparison at each of its budgets, and where the static curves cross.

The answer is the verdict on grown against the *best* static arm at equal compute, which is chosen without the test
split: the highest validation accuracy (or the best of what else leads), averaged over the seeds. It is no, too, if
another arm without growth was as good at no higher cost.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from esper.configs.comparison import ARMS
from esper.contracts.metrics import MetricInfo
from esper.costs import flops
from esper.report.arms import Arm, Comparison
from esper.report.claims import MIN_PAIRS, Claim
from esper.report.curves import Curve, crossings, transfer
from esper.report.scale import Scale
from esper.tracking.formatting import number

__all__ = ["STATIC_AT_EQUAL_COMPUTE", "Answer", "Crossing", "answers", "crossing", "headline"]

STATIC_AT_EQUAL_COMPUTE = tuple(
    name for name, arm in ARMS.items() if arm.after and arm.budget == "compute" and not arm.grows
)
_ENDS = ("static_flops", "final_flops")
"""The static sizes without which there is no yes; in between there may be none."""
_FINAL = ("final", "final_flops", "final_seconds")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Did growing pay at one budget?

    Attributes:
        budget: see `Arm`.
        flops: FLOPs of the grown runs, on average.
        answer: Yes, No, or Not shown.
        reason: against which arm, with figures; or what is missing.
        best: label of the best static arm at equal compute; None if no arm can be chosen.
        choice: which arm that is and why, in one sentence.
        transfer: how much of the host's training the grown network kept, see `curves.transfer`.
        host_share: cost of a step of the host, relative to the final network.
    """

    budget: str
    flops: float
    answer: str
    reason: str
    best: str | None
    choice: str
    transfer: float | None
    host_share: float | None

    @property
    def sentence(self) -> str:
        """The answer in one sentence."""
        at = f" at {self.budget}" if self.budget else ""
        return f"Did growing pay{at}? {self.answer}: {self.reason}."

    @property
    def transfer_sentence(self) -> str:
        """Transfer and relative cost of the host in one sentence; empty if the transfer is unknown."""
        if self.transfer is None or self.host_share is None:
            return ""
        side = "more" if self.transfer > self.host_share else "less"
        at = f" at {self.budget}" if self.budget else ""
        return (
            f"Transfer rho{at}: {self.transfer:.2f}, {side} than the relative cost of the host's steps, "
            f"{self.host_share:.2f}."
        )


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """Where the curves of host and final network cross.

    Attributes:
        flops: FLOPs of the crossings; usually one.
        sentence: where they are, and on which side the budgets are.
    """

    flops: Sequence[float]
    sentence: str


def answers(comparison: Comparison, claims: Sequence[Claim]) -> list[Answer]:
    """The answer at each budget; none if the comparison is not a fair one, or the grown arm is missing."""
    if not comparison.is_fair:
        return []
    by_pair = {(claim.ours, claim.other): claim for claim in claims}
    found = []
    for budget in comparison.budgets:
        arms = comparison.at(budget)
        grown = arms.get("grown")
        if grown is None or len(arms) == 1:
            continue
        at_budget = {arm.name: by_pair[grown.label, arm.label] for arm in arms.values() if arm is not grown}
        best, choice = _choose(arms, comparison.headline)
        starts_from_network = any(run.settings.get("model.init_from", "null") != "null" for run in grown.runs.values())
        answer, reason = _answer(arms, at_budget, best, starts_from_network=starts_from_network)
        rho, share = (None, None) if starts_from_network else _transfer(comparison, grown)
        found.append(
            Answer(
                budget=budget,
                flops=flops(grown.mean("total_macs")),
                answer=answer,
                reason=reason,
                best=best.label if best else None,
                choice=f"At {budget}, {choice[0].lower()}{choice[1:]}" if budget else choice,
                transfer=rho,
                host_share=share,
            )
        )
    return found


def headline(comparison: Comparison, claims: Sequence[Claim], found: Sequence[Answer]) -> str:
    """The comparison in one sentence."""
    if not claims:
        return "No claims about these runs."
    if len(found) == 1:
        return found[0].sentence
    if found:
        return f"Did growing pay? {'; '.join(f'{answer.budget}: {answer.answer.lower()}' for answer in found)}."
    if len(claims) == 1:
        return claims[0].sentence
    counts = Counter(claim.verdict for claim in claims)
    summary = ", ".join(f"{counts[verdict]} {verdict}" for verdict in ("yes", "no", "not shown") if counts[verdict])
    return f"{len(claims)} arms against {comparison.baseline}: {summary}."


def crossing(comparison: Comparison) -> Crossing | None:
    """Where host and final network are equally good; None unless both were trained at several budgets."""
    host, final = (_curve(comparison, name) for name in _ENDS)
    if not comparison.is_fair or len(host) < 2 or len(final) < 2:
        return None
    found = crossings(host, final)
    host_words, final_words = (ARMS[name].words for name in _ENDS)
    names = f"The static curves ({host_words}; {final_words})"
    spent = {arm.budget: flops(arm.mean("total_macs")) for arm in comparison.arms if arm.name == _ENDS[0]}
    if not found:
        is_host = min(host)[1] > min(final)[1]
        ahead, side = (host_words, "beyond") if is_host else (final_words, "below")
        return Crossing(
            flops=[], sentence=f"{names} do not cross: {ahead} is ahead at every budget; they may cross {side} these."
        )
    where = " and ".join(f"{number(value)}FLOP" for value in found)
    below, beyond = (host_words, final_words) if min(host)[1] > min(final)[1] else (final_words, host_words)
    sides = {
        f"below, where {below} is better": [budget for budget, value in spent.items() if value < found[0]],
        "in between": [budget for budget, value in spent.items() if found[0] <= value <= found[-1]],
        f"beyond, where {beyond} is better": [budget for budget, value in spent.items() if value > found[-1]],
    }
    if len(found) % 2 == 0:  # the same is better on both sides
        sides[f"beyond, where {below} is better"] = sides.pop(f"beyond, where {beyond} is better")
    stand = "; ".join(f"{side}: {', '.join(budgets)}" for side, budgets in sides.items() if budgets)
    return Crossing(flops=found, sentence=f"{names} cross at {where}. Budgets: {stand}.")


def _candidates(arms: Mapping[str, Arm]) -> dict[str, set[int]]:
    """The static arms at equal compute that may be the best one, and their seeds with a validation figure.

    An arm with few seeds would leave few to compare.
    """
    seeds = {name: _validated(arms[name]) for name in STATIC_AT_EQUAL_COMPUTE if name in arms}
    enough = min(MIN_PAIRS, max(map(len, seeds.values()), default=0)) or 1
    return {name: known for name, known in seeds.items() if len(known) >= enough}


def _validated(arm: Arm) -> set[int]:
    """The seeds of an arm whose run has a validation figure."""
    return {seed for seed, run in arm.runs.items() if not math.isnan(run.val_figure)}


def _choose(arms: Mapping[str, Arm], info: MetricInfo) -> tuple[Arm | None, str]:
    """The best static arm at equal compute, by the leading metric in validation, and the choice in one sentence."""
    candidates = _candidates(arms)
    if not candidates:
        return None, f"No best static arm at equal compute: none has a validation {info.label}."
    common = set.intersection(*candidates.values())
    seeds = {name: sorted(common or known) for name, known in candidates.items()}
    means = {name: float(np.mean([arms[name].runs[seed].val_figure for seed in seeds[name]])) for name in candidates}
    best = max(candidates, key=lambda name: info.sign * means[name])
    figures = "; ".join(f"{ARMS[name].words} {Scale(info).value(means[name])}" for name in candidates)
    absent = [ARMS[name].words for name in STATIC_AT_EQUAL_COMPUTE if name not in candidates]
    num_seeds = len(seeds[best])
    without = f"; without {' and '.join(absent)}" if absent else ""
    return arms[best], (
        f"The best static arm at equal compute is {ARMS[best].words}: the "
        f"{'highest' if info.higher_is_better else 'lowest'} mean validation {info.label} over "
        f"{num_seeds} seed{'s' if num_seeds != 1 else ''}, chosen without the test split ({figures}{without})."
    )


def _answer(
    arms: Mapping[str, Arm], claims: Mapping[str, Claim], best: Arm | None, *, starts_from_network: bool
) -> tuple[str, str]:
    """The answer and its reason."""
    # The final network for as many epochs spends more than grown, so that it may be better.
    at_no_higher_cost = [name for name in claims if not ARMS[name].grows and name != "final"]
    lost = [name for name in at_no_higher_cost if claims[name].verdict == "no"]
    missing = [ARMS[name].words for name in _ENDS if name not in arms]
    if missing and not lost:
        return "Not shown", f"{' and '.join(missing)} {'has' if len(missing) == 1 else 'have'} no finished run"
    if best is None and not lost:
        return "Not shown", "no arm has a validation figure, by which the best static one is chosen"
    name = best.name if best and (best.name in lost or not lost) else lost[0]
    unjudged = [end for end in _ENDS if end in arms and end not in _candidates(arms)]
    if unjudged and claims[name].verdict == "yes":
        few = " and ".join(f"{ARMS[end].words} has {len(_validated(arms[end]))}" for end in unjudged)
        return "Not shown", f"a yes takes at least {MIN_PAIRS} finished runs with a validation figure, and {few}"
    if starts_from_network and claims[name].verdict == "yes":
        # Validation images of a host trained longer may have been among the training images of that network.
        name = next(
            (other for other in STATIC_AT_EQUAL_COMPUTE if other in claims and claims[other].verdict != "yes"), name
        )
    words = ARMS[name].words
    against = f"the best static arm at equal compute ({words})" if best and name == best.name else words
    return claims[name].verdict.capitalize(), f"against {against}, {claims[name].reason}"


def _curve(comparison: Comparison, name: str) -> Curve:
    """FLOPs and test figure of an arm, by budget; multiplied by its sign, so that higher is better."""
    sign = comparison.headline.sign
    return [(flops(arm.mean("total_macs")), sign * arm.figure) for arm in comparison.arms if arm.name == name]


def _transfer(comparison: Comparison, grown: Arm) -> tuple[float | None, float | None]:
    """Transfer of a network that grew once, and the relative cost of its host; None if unknown."""
    runs = list(grown.runs.values())
    if any(len(run.growth_steps) != 1 or "num_macs_before" not in (run.result or {}) for run in runs):
        return None, None
    host_steps = float(np.mean([min(run.growth_steps) for run in runs]))
    grown_steps = float(np.mean([run.num_steps for run in runs])) - host_steps
    by_steps: dict[float, list[float]] = {}
    for arm in comparison.arms:
        if arm.name in _FINAL:
            steps = float(np.mean([run.num_steps for run in arm.runs.values()]))
            by_steps.setdefault(steps, []).append(arm.figure)
    rho = transfer(
        [(steps, float(np.mean(figures))) for steps, figures in by_steps.items()],
        accuracy=grown.figure,
        host_steps=host_steps,
        grown_steps=grown_steps,
    )
    return rho, grown.mean("num_macs_before") / grown.mean("num_macs")
