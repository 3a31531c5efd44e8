"""Plots of a comparison: each run is a point, each arm has a colour and a marker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esper.contracts.metrics import MetricInfo
from esper.costs import flops
from esper.report.arms import Arm
from esper.report.claims import Claim
from esper.report.figure import Axis, Figure, Mark, Series
from esper.report.plotting import Axes
from esper.report.runs import ComparedRun, CurvePoint
from esper.report.scale import Scale
from esper.report.statistics import mean_interval
from esper.report.svg import INK, svg

__all__ = ["budget_curves", "differences", "figure_against", "figure_over_flops", "marks"]

_MARKS = (
    *(("#16a34a", "o", "●"), ("#8a94a6", "s", "■"), ("#3b82f6", "^", "▲"), ("#ea7317", "D", "◆")),
    *(("#0d9488", "P", "✚"), ("#c026d3", "v", "▼"), ("#a78bfa", "X", "✖"), ("#ca8a04", "*", "★")),
    ("#e11d48", "<", "◀"),
)
"""Colour, Matplotlib marker, and the marker as text; arms take them in turn, from the tenth on in other pairs."""
_VERDICT = {"yes": "#16a34a", "no": "#ea7317", "not shown": "#8a94a6"}
_UNITS = ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"))
_LOGARITHMIC_FROM = 4
"""Ratio of largest to smallest value above which an axis is logarithmic."""
_MAX_NAME = 56
"""Characters of an arm's name in a plot."""
_SAME = 0.1
"""Relative range of values below which an axis shows this range, so that equal budgets look equal."""


def marks(arms: Sequence[Arm]) -> list[tuple[str, str, str]]:
    """Colour, marker and text marker of each arm; an arm has the same ones at all budgets."""
    names = list(dict.fromkeys(arm.name or arm.label for arm in arms))
    return [_mark(names.index(arm.name or arm.label)) for arm in arms]


def _mark(number: int) -> tuple[str, str, str]:
    again, place = divmod(number, len(_MARKS))
    _, marker, text = _MARKS[(place + again) % len(_MARKS)]
    return _MARKS[place][0], marker, text


def budget_curves(arms: Sequence[Arm], info: MetricInfo, *, names: Sequence[str], crossings: Sequence[float]) -> Figure:
    """The leading metric of some arms against compute, a curve over the budgets each, with 95 % t intervals.

    Args:
        arms: of a fair comparison with several budgets.
        info: the leading metric.
        names: the arms to draw.
        crossings: FLOPs at which to draw a dotted line.
    """
    drawn = [(arm, mark) for arm, mark in zip(arms, marks(arms), strict=True) if arm.name in names]
    largest = max(run.flops for arm, _ in drawn for run in arm.runs.values())
    unit, name = next(((unit, name) for unit, name in _UNITS if largest >= unit), _UNITS[-1])
    present = [name for name in names if any(arm.name == name for arm, _ in drawn)]
    curves = []
    for index, curve in enumerate(present):
        of_curve = [(arm, mark) for arm, mark in drawn if arm.name == curve]
        colour, *marker = of_curve[0][1]
        apart = 1 + 0.02 * (index - (len(present) - 1) / 2)  # or the intervals would cover each other
        spent = [apart * flops(arm.mean("total_macs")) / unit for arm, _ in of_curve]
        means = [mean_interval(_figures(arm)) for arm, _ in of_curve]
        title, budgets = of_curve[0][0].words, [arm.budget for arm, _ in of_curve]
        curves.append(
            Series(
                name=title,
                colour=colour,
                x=spent,
                y=[mean for mean, _ in means],
                half=[half for _, half in means],
                marker=(marker[0], marker[1]),
                names=budgets,
            )
        )
    grown = [arm for arm, _ in drawn if arm.name == "grown"] or [arm for arm, _ in drawn]
    ticks = sorted({flops(arm.mean("total_macs")) / unit for arm in grown})
    return Figure(
        x=Axis(label=f"{name} spent", is_log=True, ticks=ticks),
        y=_figure_axis([arm for arm, _ in drawn], info),
        series=curves,
        marks=[Mark(x=value / unit, dashes=(1.5, 2.0), text="crossing", width=0.8) for value in crossings],
        has_legend=False,
    )


def figure_against(
    arms: Sequence[Arm], info: MetricInfo, metric: str, label: str, *, link: Callable[[ComparedRun], str]
) -> Figure:
    """The leading metric in the test against another: every run, and each arm's mean with its 95 % t interval.

    `link`: the address of a run's report, or "".
    """
    series = []
    for arm, (colour, *marker) in zip(arms, marks(arms), strict=True):
        runs = list(arm.runs.values())
        x, figures = [_value(run, metric) for run in runs], _figures(arm)
        style: dict[str, Any] = {
            "name": arm.words, "colour": colour, "marker": (marker[0], marker[1]), "is_line": False,
        }  # fmt: skip
        names = [f"{run.name}, rng_seed {run.seed}" for run in runs]
        links = [link(run) for run in runs]
        series.append(Series(x=x, y=figures.tolist(), size=4.0, alpha=0.35, names=names, links=links, **style))
        mean, half = mean_interval(figures)
        name = f"mean of {len(runs)} runs{f' at {arm.budget}' if arm.budget else ''}"
        series.append(Series(x=[float(np.mean(x))], y=[mean], half=[half], size=7.0, names=[name], **style))
    values = [value for one in series for value in one.x]
    return Figure(x=_spent_axis(values, label), y=_figure_axis(arms, info), series=series, has_legend=False)


def figure_over_flops(arms: Sequence[Arm], info: MetricInfo, *, target: float) -> Figure:
    """The leading metric in validation against the FLOPs spent until then, averaged over each arm's runs.

    The dotted line is at `target`.
    """
    series = []
    for arm, (colour, *_) in zip(arms, marks(arms), strict=True):
        if not any(run.curve for run in arm.runs.values()):
            continue
        # Runs of an arm spend different amounts: average at equal fractions of each run's compute.
        spent, reached = np.mean([_resampled(run.curve) for run in arm.runs.values() if run.curve], axis=0)
        names = [arm.title] if arm.budget else []
        series.append(
            Series(name=arm.words, colour=colour, x=spent.tolist(), y=reached.tolist(), width=1.5, names=names)
        )
    unit = "%" if info.unit == "%" else ""
    return Figure(
        x=Axis(label="FLOPs spent", unit="count"),
        y=Axis(label=f"validation {info.label}", unit=unit),
        series=series,
        levels=[target],
        has_legend=False,
    )


def differences(claims: Sequence[Claim]) -> str:
    """Paired differences of each claim: every pair, the mean, its t interval (thick) and bootstrap interval (thin)."""
    has_common_other = len({claim.other for claim in claims}) == 1  # label by `ours`
    scale = claims[0].scale
    factor, unit = scale.factor, scale.unit.strip()

    def draw(axes: Axes) -> None:
        for row, claim in enumerate(claims):
            colour = _VERDICT[claim.verdict]
            axes.plot(factor * claim.differences, [row] * len(claim.seeds), "|", color=colour, alpha=0.6, markersize=7)
            for low, high, below, width in (
                (float(claim.test.low), float(claim.test.high), 0.0, 2.4),
                (*claim.bootstrap, 0.16, 1.0),
            ):
                axes.plot([factor * low, factor * high], [row + below] * 2, color=colour, linewidth=width)
            axes.plot(factor * claim.test.mean, row, "o", color=colour, markersize=6)
            ours, _, other = claim.words.partition(" against ")
            label = f"{_shortened(ours if has_common_other else f'against {other}')}: {claim.verdict}"
            text = axes.text(0.0, row - 0.33, label, transform=axes.get_yaxis_transform(), fontsize=9, parse_math=False)
            text.set_in_layout(False)  # a long label must not shrink the axes
        axes.axvline(0, color=INK, linewidth=0.6, alpha=0.5)
        axes.axvline(-factor * min(claim.margin for claim in claims), color=INK, linewidth=0.8, linestyle=(0, (1.5, 2)))
        axes.set_ylim(len(claims) - 0.4, -0.85)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.08)
        if scale.info.unit == "%":  # of fractions; intervals of very few runs may leave the plot
            axes.set_xlim(max(axes.get_xlim()[0], -100.0), min(axes.get_xlim()[1], 100.0))
        what = "difference" if scale.info.higher_is_better else "improvement"
        axes.set_xlabel(f"{what} in test {scale.info.label}{f' ({unit})' if unit else ''}")
        axes.grid(True, axis="x")

    return svg(draw, height=0.75 + 0.55 * len(claims))


def _shortened(name: str) -> str:
    """A name that leaves room for the verdict."""
    half = _MAX_NAME // 2
    return name if len(name) <= _MAX_NAME else f"{name[:half]}…{name[1 - half :]}"


def _resampled(curve: Sequence[CurvePoint]) -> NDArray[np.float64]:
    """FLOPs and figures (2, 200) at equal steps of compute from the first validation to the last."""
    spent = np.array([flops(point.macs) for point in curve])
    grid = np.linspace(spent[0], spent[-1], 200)
    return np.stack([grid, np.interp(grid, spent, [point.figure for point in curve])])


def _value(run: ComparedRun, metric: str) -> float:
    return run.flops if metric == "total_macs" else run.metric(metric)


def _figures(arm: Arm) -> NDArray[np.float64]:
    return np.array([run.figure for run in arm.runs.values()])


def _figure_axis(arms: Sequence[Arm], info: MetricInfo) -> Axis:
    """Show all runs; intervals of very few runs, which are wide, may leave the plot."""
    figures = np.concatenate([_figures(arm) for arm in arms])
    low, high = float(figures.min()), float(figures.max())
    margin = max(0.5 * (high - low), Scale(info).margin(high))
    label = f"test {info.label}"
    if info.unit == "%":
        return Axis(label=label, unit="%", limits=(max(low - margin, 0.0), min(high + margin, 1.0)))
    return Axis(label=label, limits=(low - margin, high + margin) if margin > 0 else None)


def _spent_axis(values: Sequence[float], label: str) -> Axis:
    """Logarithmic where values differ much; equal budgets look equal."""
    low, high, middle = min(values), max(values), (min(values) + max(values)) / 2
    is_log = low > 0 and high / low > _LOGARITHMIC_FROM
    limits = None
    if high - low < _SAME * middle:  # a magnified error would look like a difference
        limits = ((1 - _SAME) * middle, (1 + _SAME) * middle)
    return Axis(label=label, unit="count", is_log=is_log, limits=limits)
