"""A figure as data: drawn by Matplotlib for pages without scripts, and anew by `plot.js`, which makes it explorable."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from markupsafe import Markup

from esper.report.plotting import (
    Axes,
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    PercentFormatter,
)
from esper.report.svg import INK, svg
from esper.tracking.formatting import memory, number
from esper.tracking.journal import strict

__all__ = ["Axis", "Figure", "Mark", "Series", "as_data", "embed", "thinned"]

_MAX_POINTS = 1200
"""Points of a curve above which it is thinned."""
_DECADES_FROM = 300
"""Ratio above which a logarithmic axis has labels at powers of ten only."""
_DOTS = (1.5, 2.0)

Limits = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis.

    Attributes:
        label: what it shows.
        unit: `%` (of fractions), `B` (bytes), `count` (12.3 M), or empty.
        is_log: whether it is logarithmic.
        limits: of what is shown; None: from the data, percentages up to 100 % at most.
        ticks: where it is labelled; empty: at round numbers.
    """

    label: str = ""
    unit: str = ""
    is_log: bool = False
    limits: Limits | None = None
    ticks: Sequence[float] = ()


@dataclass(frozen=True, kw_only=True)
class Series:
    """A curve, or points.

    Attributes:
        name: what hides and shows it, and what the legend calls it.
        marker: Matplotlib's name of a marker, and the marker as text; empty: a curve without markers.
        is_line: whether the points are connected.
        half: half the interval at each point; nan where it has none.
        names, links: of each point, what it is and the page to open; of a curve one name, if `name` is not its own.
    """

    name: str
    colour: str
    x: Sequence[float]
    y: Sequence[float]
    width: float = 1.4
    marker: tuple[str, str] = ("", "")
    size: float = 6.0
    alpha: float = 1.0
    is_line: bool = True
    half: Sequence[float] = ()
    names: Sequence[str] = ()
    links: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A vertical line with a label above it; `dashes`: lengths of dash and gap, () is solid; `text`: in words."""

    x: float
    colour: str = ""
    dashes: tuple[float, ...] = ()
    label: str = ""
    text: str = ""
    width: float = 1.1


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What a plot shows; `levels`: dotted horizontal lines; `height` in inches at a width of 5.2."""

    x: Axis
    y: Axis
    series: Sequence[Series]
    marks: Sequence[Mark] = ()
    levels: Sequence[float] = ()
    height: float = 3.1
    has_legend: bool = True


def embed(figure: Figure) -> Markup:
    """The figure as HTML: an SVG, and the data from which `plot.js` draws it anew."""
    limits: dict[str, Limits] = {}

    def draw(axes: Axes) -> None:
        _draw(axes, figure)
        limits.update(x=axes.get_xlim(), y=axes.get_ylim())

    drawing = svg(draw, height=figure.height)
    data = json.dumps(strict(as_data(figure, limits)), separators=(",", ":"), allow_nan=False)
    return Markup('<figure class="plot" data-plot="{}">{}</figure>').format(data, Markup(drawing))


def thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """A curve with at most about 1200 points: of each stretch its lowest and its highest."""
    if len(x) <= _MAX_POINTS:
        return list(x), list(y)
    bounds = [round(i * len(x) / (_MAX_POINTS // 2)) for i in range(_MAX_POINTS // 2 + 1)]
    kept = {0, len(x) - 1}
    for start, end in itertools.pairwise(bounds):
        finite = [i for i in range(start, end) if math.isfinite(y[i])] or [start]
        kept |= {min(finite, key=lambda i: y[i]), max(finite, key=lambda i: y[i])}
    return [x[i] for i in sorted(kept)], [y[i] for i in sorted(kept)]


def as_data(figure: Figure, limits: Mapping[str, Limits] = MappingProxyType({})) -> dict[str, Any]:
    """What `plot.js` reads; numbers to six digits. Without limits it finds them itself."""
    axes = {"x": figure.x, "y": figure.y}
    return {
        **{
            name: {
                "label": axis.label,
                "unit": axis.unit,
                "log": axis.is_log,
                "limits": limits.get(name, axis.limits),
                "ticks": list(axis.ticks),
            }
            for name, axis in axes.items()
        },
        "series": [
            {
                "name": one.name,
                "colour": one.colour,
                "x": _short(one.x),
                "y": _short(one.y),
                "half": _short(one.half),
                "width": one.width,
                "marker": one.marker[1],
                "size": one.size,
                "alpha": one.alpha,
                "line": one.is_line,
                "names": list(one.names),
                "links": list(one.links),
            }
            for one in figure.series
        ],
        "marks": [
            {"x": mark.x, "colour": mark.colour, "dashes": mark.dashes, "label": mark.label, "text": mark.text}
            for mark in figure.marks
        ],
        "levels": _short(figure.levels),
        "height": figure.height / 5.2,
        "legend": figure.has_legend,
    }


def _short(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def _draw(axes: Axes, figure: Figure) -> None:
    for one in figure.series:
        style: dict[str, Any] = {"color": one.colour, "alpha": one.alpha}
        if len(one.half):
            half = [0.0 if math.isnan(value) else value for value in one.half]
            axes.errorbar(one.x, one.y, half, fmt="none", linewidth=one.width, capsize=3, **style)
        axes.plot(
            one.x,
            one.y,
            linestyle="-" if one.is_line else "",
            linewidth=one.width,
            marker=one.marker[0],
            markersize=one.size,
            markeredgewidth=0 if one.marker[0] else None,
            label=one.name,
            clip_on=False,
            **style,
        )
    for value in figure.levels:
        axes.axhline(value, color=INK, linewidth=0.8, linestyle=(0, _DOTS))
    _marks(axes, figure.marks)
    for axis, name in ((figure.x, "x"), (figure.y, "y")):
        _scale(axes, axis, name)
    axes.grid(True)
    if figure.has_legend and len(figure.series) > 1:
        axes.legend(
            frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1.05), borderaxespad=0, handlelength=1.4
        )


def _marks(axes: Axes, marks: Sequence[Mark]) -> None:
    labels: dict[float, list[str]] = {}
    for mark in marks:
        dashes = (0, mark.dashes) if mark.dashes else "-"
        axes.axvline(mark.x, color=mark.colour or INK, linewidth=mark.width, linestyle=dashes)
        labels.setdefault(mark.x, []).extend([mark.label] * bool(mark.label))
    for x, names in labels.items():
        where: Any = axes.get_xaxis_transform()
        axes.text(x, 1.01, " ".join(names), transform=where, ha="center", va="bottom", fontsize=8)


def _scale(axes: Axes, axis: Axis, name: str) -> None:
    """Scale, limits, ticks and label of one axis."""
    ours = axes.xaxis if name == "x" else axes.yaxis
    get, set_limits = (axes.get_xlim, axes.set_xlim) if name == "x" else (axes.get_ylim, axes.set_ylim)
    if axis.is_log:
        (axes.set_xscale if name == "x" else axes.set_yscale)("log")
    if axis.limits is not None:
        set_limits(*axis.limits)
    elif axis.unit == "%":
        set_limits(max(get()[0], 0.0), min(get()[1], 1.0))
    low, high = get()
    if axis.ticks:
        ours.set_major_locator(FixedLocator(list(axis.ticks)))
        ours.set_minor_locator(NullLocator())
    elif axis.is_log:
        ours.set_major_locator(LogLocator(subs=(1.0,) if high / low > _DECADES_FROM else (1.0, 2.0, 5.0)))
    else:
        ours.set_major_locator(MaxNLocator(6))
    shown = {"": lambda value: f"{value:g}", "B": memory, "count": _count}.get(axis.unit)
    if axis.ticks:
        shown = "{:.3g}".format
    ours.set_major_formatter(PercentFormatter(1.0) if shown is None else FuncFormatter(lambda value, _: shown(value)))
    ours.set_minor_formatter(NullFormatter())
    ours.set_label_text(axis.label)


def _count(value: float) -> str:
    return number(value) if abs(value) >= 10 else f"{value:g}"
