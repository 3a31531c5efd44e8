"""Plans in words and numbers, for the terminal and the page."""

from __future__ import annotations

from esper.contracts.metrics import MetricInfo
from esper.planning.observations import Choice, Interval, Question
from esper.tracking.formatting import metric, number

__all__ = ["choice_words", "compute_words", "difference_words", "interval_words", "percent_words"]


def choice_words(choice: Choice, question: Question) -> str:
    """A choice for readers: "training the host longer", "growing at 30 %"."""
    if choice.share is not None:
        return f"growing at {100 * choice.share:.0f} %"
    if choice.size == question.host.name:
        return "training the host longer"
    return "starting with " + next(size.label for size in question.sizes if size.name == choice.size)


def difference_words(amount: float, headline: MetricInfo) -> str:
    """A difference of figures: `0.42 points`, `0.0031 bits a byte`."""
    if headline.unit == "%":
        return f"{100 * amount:.2f} points"
    return f"{amount:.2g} {headline.unit}".strip()


def interval_words(interval: Interval, headline: MetricInfo) -> str:
    """The ends of an interval of figures: `87.4 to 88.9 %`."""
    if headline.unit == "%":
        return f"{100 * interval.low:.1f} to {100 * interval.high:.1f} %"
    return f"{interval.low:.4g} to {metric(interval.high, headline)}"


def percent_words(probability: float) -> str:
    """A probability; never 0 or 100 %, which some hundred draws cannot show."""
    if probability < 0.01:
        return "< 1 %"
    return "> 99 %" if probability > 0.99 else f"{100 * probability:.0f} %"


def compute_words(macs: float) -> str:
    """MACs as FLOPs: `2.13 PFLOP`."""
    return f"{number(2 * macs)}FLOP"
