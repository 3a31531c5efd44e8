"""A policy that was learned from plans and their outcomes: what it reads in a plan, and what it makes of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from esper.contracts.metrics import MetricInfo
from esper.planning.observations import Choice, Observation, Option, Plan, Question
from esper.planning.words import choice_words, difference_words
from esper.simic.growth import GROWN, Cell, GrowthPolicy

__all__ = ["USUAL_SHARE", "advise", "cell_of", "simplest", "worth_of"]

USUAL_SHARE = 0.3
"""Of growth, that of `morphogenetic=stack`."""
_NEAR_SHARE, _NEAR_BUDGET = 0.1, 0.05
"""Runs whose share and budget differ by less than this count: growth waits for the end of an epoch."""
_WORTH, _RELATIVE_WORTH = 0.001, 0.002
_TIE = 0.25
"""Share of what is worth a choice within which the simpler option is taken."""


def worth_of(headline: MetricInfo, typical: float) -> float:
    """A difference that is worth a choice: a tenth of a point for percentages, 0.2 % of a typical figure otherwise."""
    return _WORTH if headline.unit == "%" else _RELATIVE_WORTH * abs(typical)


def simplest(options: Sequence[Option], worth: float) -> Option:
    """The first option whose regret is the least, give or take a quarter of what is worth a choice."""
    least = min(option.regret for option in options)
    return next(option for option in options if option.regret <= least + _TIE * worth)


def _features(question: Question, options: Sequence[Option]) -> tuple[float, ...] | None:
    """Inputs of a policy, see `simic.growth`; None if host, final size and growing are not all among the options."""
    found = {name: _option(options, name) for name in (question.host.name, question.final.name, GROWN)}
    host, final, grown = found.values()
    if host is None or final is None or grown is None:
        return None
    worth = _worth(question, options)
    static = min(option.regret for option in options if option.choice.share is None)
    return math.asinh((static - grown.regret) / worth), math.asinh((host.regret - final.regret) / worth)


def advise(policy: GrowthPolicy, question: Question, options: Sequence[Option], planned: Option) -> tuple[Option, str]:
    """What an active policy recommends, and a sentence that says so, or that the plan lacks what it reads.

    Args:
        policy: the policy.
        question: what was asked.
        options: of the plan.
        planned: what it recommends without the policy; kept if the policy agrees on whether to grow.
    """
    inputs, chosen = _features(question, options), _option(options, GROWN)
    if inputs is None or chosen is None:
        return planned, "The learned policy is not used: it takes host, final size and growing at about 30 %."
    lead = policy.lead(inputs)
    if lead <= 0:
        chosen = _static(question, options)
    if (lead > 0) == (planned.choice.share is not None):
        chosen = planned
    amount = difference_words(abs(lead) * _worth(question, options), question.headline)
    text = (
        f"A policy learned from {policy.num_cells} earlier plans and their outcomes expects growing to end {amount} "
        f"{'ahead of' if lead > 0 else 'behind'} the best size from scratch"
    )
    without = f"; the pilots alone recommend {choice_words(planned.choice, question)}"
    return chosen, f"{text}{'' if chosen is planned else without}."


def cell_of(plan: Plan, found: Sequence[Observation], *, family: str) -> Cell | None:
    """A plan with the outcomes of its options; None if one of its sizes, or growing at about 30 %, has none.

    Runs count from what the pilots left of the budget to all of it. What the whole budget would have added, and so
    what pilots cost, is taken from the plan's curves.
    """
    question, options = plan.question, plan.options
    inputs = _features(question, options)
    if inputs is None:
        return None
    unit = question.headline.sign / _worth(question, options)
    figures: dict[str, list[float]] = {name: [] for name in (*(option.choice.size for option in options), GROWN)}
    costs: dict[str, float] = {}
    for name in figures:
        option = _option(options, name)
        assert option is not None, "its features are known"
        whole = _whole_budget(question, option)
        left = (1 - _NEAR_BUDGET) * min(option.macs, whole)
        for one in found:
            if _kind(one.choice) == name and left <= one.macs <= (1 + _NEAR_BUDGET) * whole:
                added = _expected(plan, name, whole) - _expected(plan, name, one.macs)
                figures[name].append(unit * (one.figure + added))
        costs[name] = unit * (_expected(plan, name, whole) - _expected(plan, name, option.macs))
    if not all(figures.values()):
        return None
    planned = plan.recommended if plan.without_policy is None else plan.without_policy
    return Cell(
        family=family,
        macs=_whole_budget(question, options[0]),
        features=inputs,
        figures={name: float(np.mean(values)) for name, values in figures.items()},
        costs=costs,
        planned=planned.size if planned.share is None else GROWN,
        static=planned.size if planned.share is None else _static(question, options).choice.size,
    )


def _worth(question: Question, options: Sequence[Option]) -> float:
    return worth_of(question.headline, float(np.median([option.figure.expected for option in options])))


def _kind(choice: Choice) -> str | None:
    """Size, or growing at about the usual share; None: at another one."""
    if choice.share is None:
        return choice.size
    return GROWN if abs(choice.share - USUAL_SHARE) <= _NEAR_SHARE else None


def _option(options: Sequence[Option], name: str) -> Option | None:
    """The option of a kind; of several shares, the one that is nearest to the usual."""
    mine = [option for option in options if _kind(option.choice) == name]
    return min(mine, key=lambda option: abs((option.choice.share or 0.0) - USUAL_SHARE), default=None)


def _static(question: Question, options: Sequence[Option]) -> Option:
    """What is recommended of the sizes from scratch."""
    sizes = [size.name for size in question.sizes]
    static = [option for option in options if option.choice.share is None]
    return simplest(sorted(static, key=lambda one: sizes.index(one.choice.size)), _worth(question, options))


def _whole_budget(question: Question, option: Option) -> float:
    """MACs of an option if no pilots had been trained."""
    if question.macs is not None:
        return question.macs
    assert question.seconds is not None, "a question limits MACs or seconds"
    return option.macs * question.seconds / (question.seconds - question.pilot_seconds)


def _expected(plan: Plan, name: str, macs: float) -> float:
    """The expected figure of a kind at a budget, by the plan's curves; of growing, at the share that it plotted."""
    band = next(band for band in plan.bands if (GROWN if band.choice.share is not None else band.choice.size) == name)
    return float(np.interp(np.log(macs), np.log(band.macs), band.median))
