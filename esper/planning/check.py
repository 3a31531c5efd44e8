"""`esper plan --check`: what was predicted against what was found."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from esper.planning.forecast import Forecast, forecast
from esper.planning.observations import Choice, Observation, Plan, Prediction
from esper.planning.record import PlanRecord
from esper.planning.words import (
    choice_label,
    difference_words,
    figure_words,
    interval_words,
)
from esper.tracking.formatting import number

__all__ = ["Checked", "check", "printed"]

_SAME_BUDGET = 0.05
"""Relative difference of compute up to which a run counts as one of the plan's option."""
_SAME_SHARE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A finished run and its prediction.

    Attributes:
        choice: what it trained.
        found: the run.
        predicted: its figure, as the plan said; for another budget or share, as its curves say.
        is_planned: whether it is one of the plan's options at its budget.
    """

    choice: Choice
    found: Observation
    predicted: Prediction
    is_planned: bool

    @property
    def is_inside(self) -> bool:
        """Whether the interval holds the figure."""
        return self.predicted.low <= self.found.figure <= self.predicted.high


def check(record: PlanRecord, found: Sequence[Observation]) -> list[Checked]:
    """Compare finished runs, which the plan was not made from, with what it predicted."""
    plan = record.plan
    known = {option.choice.size for option in plan.options}
    curves = functools.cache(lambda: forecast(plan.question, record.observations))
    return [_checked(one, plan, curves) for one in found if one.size in known]


def _checked(one: Observation, plan: Plan, fitted: Callable[[], Forecast]) -> Checked:
    choice = one.choice
    for option in plan.options:
        is_same = option.choice.size == choice.size and (option.choice.share is None) == (choice.share is None)
        is_near = abs(one.macs / option.macs - 1) <= _SAME_BUDGET
        if is_same and is_near and abs((option.choice.share or 0) - (choice.share or 0)) <= _SAME_SHARE:
            return Checked(choice=option.choice, found=one, predicted=option.figure, is_planned=True)
    return Checked(choice=choice, found=one, predicted=fitted().figure_of(choice, one.macs), is_planned=False)


def printed(checked: Sequence[Checked], plan: Plan) -> Iterator[RenderableType]:
    """The comparison as a table, and what it says in a sentence or two."""
    headline = plan.question.headline
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    table.add_column("run", no_wrap=True)
    for heading in ("rng_seed", "MACs", "predicted (80 %)", "found"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in checked:
        table.add_row(
            choice_label(one.choice, plan.question),
            str(one.found.seed),
            number(one.found.macs),
            interval_words(one.predicted, headline),
            figure_words(one.found.figure, headline) + (" ✓" if one.is_inside else " ✗"),
        )
    yield table
    inside = sum(one.is_inside for one in checked)
    share = f"{100 * inside / len(checked):.0f} %"
    yield Text(f"\n{inside} of {len(checked)} runs lie inside their 80 % intervals ({share}).")
    if verdict := _verdict(checked, plan):
        yield Text(verdict)


def _verdict(checked: Sequence[Checked], plan: Plan) -> str:
    """How the recommended option did against the others that were trained at the plan's budget."""
    figures: dict[Choice, list[float]] = {}
    for one in checked:
        if one.is_planned:
            figures.setdefault(one.choice, []).append(one.found.figure)
    if plan.recommended not in figures or len(figures) < 2:
        return ""
    sign = plan.question.headline.sign
    means = {choice: float(np.mean(values)) for choice, values in figures.items()}
    best = max(means, key=lambda choice: sign * means[choice])
    mine = choice_label(plan.recommended, plan.question)
    if best == plan.recommended:
        return f"The recommended option ({mine}) was the best of the {len(means)} that were trained."
    lost = difference_words(abs(means[best] - means[plan.recommended]), plan.question.headline)
    return f"The best of {len(means)} was {choice_label(best, plan.question)}; the recommended {mine} lost {lost}."
