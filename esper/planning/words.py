"""Plans in words and numbers, for the terminal and the page."""

from __future__ import annotations

from esper.contracts.metrics import MetricInfo
from esper.planning.observations import Choice, Interval, Prediction, Question
from esper.tracking.formatting import number

__all__ = [
    "choice_label",
    "choice_words",
    "compute_words",
    "difference_words",
    "epochs_words",
    "figure_words",
    "interval_words",
    "percent_words",
]


def choice_words(choice: Choice, question: Question) -> str:
    """A choice for readers: "training the host longer", "growing at 30 %"."""
    if choice.share is not None:
        return f"growing at {100 * choice.share:.0f} %"
    if choice.size == question.host.name:
        return "training the host longer"
    label = next(size.label for size in question.sizes if size.name == choice.size)
    return f"starting with {label if label.startswith(('a ', 'the ')) else f'the {label}'}"


def choice_label(choice: Choice, question: Question) -> str:
    """A choice in a table: "host, trained longer", "grow at 30 %"."""
    if choice.share is not None:
        return f"grow at {100 * choice.share:.0f} %"
    size = next(size for size in question.sizes if size.name == choice.size)
    return f"{size.label}, trained longer" if size == question.host else size.label


def difference_words(amount: float, headline: MetricInfo, *, unit: bool = True) -> str:
    """A difference of figures: `0.42 points`, `0.0031 bits a byte`; without a unit the metric's label says of what."""
    if headline.unit == "%":
        shown, name = f"{100 * amount:.2f}", "points"
    else:
        shown, name = f"{amount:.2g}", headline.unit or headline.label
    return f"{shown} {name}" if unit else shown


def epochs_words(epochs: float) -> str:
    """Epochs with three digits at most: `7.3`, `41`."""
    return f"{epochs:.1f}" if epochs < 9.95 else f"{epochs:.0f}"


def figure_words(figure: float, headline: MetricInfo) -> str:
    """A predicted figure without the unit of its column, except %: `88.1 %`, `1.2034`."""
    return f"{100 * figure:.1f} %" if headline.unit == "%" else f"{figure:.5g}"


def interval_words(interval: Interval | Prediction, headline: MetricInfo) -> str:
    """The ends of an interval of figures: `87.4 to 88.9 %`, `1.1921 to 1.2154`."""
    low, high = (figure_words(end, headline) for end in (interval.low, interval.high))
    return f"{low.removesuffix(' %')} to {high}"


def percent_words(probability: float) -> str:
    """A probability; never 0 or 100 %, which some hundred draws cannot show."""
    if probability < 0.01:
        return "< 1 %"
    return "> 99 %" if probability > 0.99 else f"{100 * probability:.0f} %"


def compute_words(macs: float) -> str:
    """Compute in MACs: `1.07 P MACs`."""
    return f"{number(macs)} MACs"
