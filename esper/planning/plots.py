"""Plots of a plan, as SVG: the curves against compute, and what each option is expected to show."""

from __future__ import annotations

from collections.abc import Sequence

from esper.planning.observations import Choice, Observation, Plan
from esper.planning.words import choice_label
from esper.report.plotting import Axes, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from esper.report.svg import INK, svg
from esper.tracking.formatting import number

__all__ = ["curves", "marks", "predictions"]

_GROWN = ("#16a34a", "o", "●")
_SIZES = (
    *(("#8a94a6", "s", "■"), ("#3b82f6", "^", "▲"), ("#0d9488", "P", "✚")),
    *(("#c026d3", "v", "▼"), ("#a78bfa", "X", "✖")),
)
_FINAL = ("#ea7317", "D", "◆")
_DOTTED = (0, (1.5, 2))


def marks(plan: Plan, choice: Choice) -> tuple[str, str, str]:
    """Colour, Matplotlib marker, and the marker as text: as in comparisons, growing is green."""
    if choice.share is not None:
        return _GROWN
    if choice.size == plan.question.final.name:
        return _FINAL
    return _SIZES[[size.name for size in plan.question.sizes].index(choice.size) % len(_SIZES)]


def curves(plan: Plan, observations: Sequence[Observation]) -> str:
    """The figure against compute: expected curves with 80 % intervals, what was observed, the crossing, the budget."""
    factor = 100.0 if plan.question.headline.unit == "%" else 1.0

    def draw(axes: Axes) -> None:
        for band in plan.bands:
            colour, _, _ = marks(plan, band.choice)
            low, median, high = ([factor * value for value in edge] for edge in (band.low, band.median, band.high))
            axes.fill_between(band.macs, low, high, color=colour, alpha=0.13, linewidth=0)
            axes.plot(band.macs, median, color=colour, linewidth=1.6)
        for one in observations:
            colour, marker, _ = marks(plan, one.choice)
            axes.plot(one.macs, factor * one.figure, marker, color=colour, markersize=5, markeredgewidth=0)
        if (crossing := plan.crossing) is not None:
            axes.axvspan(crossing.low, crossing.high, color=INK, alpha=0.05, linewidth=0)
            axes.axvline(crossing.median, color=INK, linewidth=0.8, linestyle=_DOTTED)
            _name(axes, crossing.median, "crossing", beside=plan.chosen.macs)
        axes.axvline(plan.chosen.macs, color=INK, linewidth=1.1)
        _name(axes, plan.chosen.macs, "budget", beside=crossing.median if crossing else 0.0)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        axes.tick_params(axis="x", labelsize=8)
        _zoom(axes, plan, observations, factor)
        axes.set_xlabel("MACs spent")
        axes.set_ylabel(_axis_label(plan))
        axes.grid(True)

    return svg(draw, height=3.6)


def predictions(plan: Plan) -> str:
    """What each option is expected to show at the budget, one run of it, with its 80 % interval."""
    factor = 100.0 if plan.question.headline.unit == "%" else 1.0

    def draw(axes: Axes) -> None:
        for row, option in enumerate(plan.options):
            colour, marker, _ = marks(plan, option.choice)
            axes.plot([factor * option.figure.low, factor * option.figure.high], [row] * 2, color=colour, linewidth=2.2)
            axes.plot(factor * option.figure.expected, row, marker, color=colour, markersize=6, clip_on=False)
            weight = "bold" if option.choice == plan.recommended else "normal"
            label = choice_label(option.choice, plan.question)
            where = axes.get_yaxis_transform()
            axes.text(0.0, row - 0.36, label, transform=where, fontsize=9, fontweight=weight, parse_math=False)
        axes.set_ylim(len(plan.options) - 0.5, -0.85)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.06)
        axes.set_xlim(*_possible(axes.get_xlim(), plan))
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel(_axis_label(plan))
        axes.grid(True, axis="x")

    return svg(draw, height=0.75 + 0.4 * len(plan.options))


def _name(axes: Axes, macs: float, name: str, *, beside: float) -> None:
    """Name a line, on the side that is away from another one."""
    side = "left" if macs >= beside else "right"
    axes.text(macs, 1.01, name, transform=axes.get_xaxis_transform(), ha=side, va="bottom", fontsize=8)


def _zoom(axes: Axes, plan: Plan, observations: Sequence[Observation], factor: float) -> None:
    """Show the curves and the observations; intervals far from the pilots may leave the plot."""
    shown = [factor * value for band in plan.bands for value in band.median]
    shown += [factor * one.figure for one in observations]
    margin = 0.08 * (max(shown) - min(shown)) or 1.0
    axes.set_ylim(*_possible((min(shown) - margin, max(shown) + margin), plan))


def _possible(limits: tuple[float, float], plan: Plan) -> tuple[float, float]:
    """Limits of an axis of figures without what no percentage can be."""
    low, high = limits
    return (max(low, 0.0), min(high, 100.0)) if plan.question.headline.unit == "%" else limits


def _axis_label(plan: Plan) -> str:
    headline = plan.question.headline
    unit = f" ({headline.unit})" if headline.unit and headline.unit != headline.label else ""
    return f"validation {headline.label}{unit}"
