"""Plots of one run's report, as SVG."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from esper.contracts.metrics import MetricInfo
from esper.report.architecture import tail
from esper.report.figure import Axis, Figure, Mark, Series, thinned
from esper.report.packs import is_shared
from esper.report.plotting import Axes
from esper.report.run_record import RunRecord
from esper.report.svg import INK, svg
from esper.tracking.history import GrownModule

__all__ = ["curves", "forest", "health_colour", "health_map"]

_TRAIN, _VAL, _KEPT, _CULLED, _BORN = "#8a94a6", "#3b82f6", "#16a34a", "#ea7317", "#a78bfa"
_HEALTH = ((0xB3, 0x26, 0x1E), (0xF6, 0xA5, 0x60), (0xDF, 0xE4, 0xEC))
_MAX_LABELLED = 10
"""Number of modules above which labels would overlap."""
_MAX_SITE = 40
"""Characters of a site's name that fit into a label."""

_Series = tuple[list[int], list[float]]
"""Steps and values."""


def curves(record: RunRecord) -> list[tuple[str, Figure]]:
    """Title and figure of everything that the journal has by step; empty before the first step."""
    if not record.of_kind("step") and not record.of_kind("epoch"):
        return []
    info = record.history.headline
    noun = (record.history.started or {}).get("noun", "images")
    has_tokens = any(event.get("tokens_per_s") is not None for event in record.of_kind("step"))
    rate = ("tokens_per_s", "tokens") if has_tokens else ("images_per_s", noun)
    of_run, of_all = (", of this run", ", of all runs on the GPU") if is_shared(record) else ("", "")
    others = [
        ("Learning rate", _finest(record, "learning_rate", "learning_rate"), Axis()),
        ("Gradient norm", record.series("step", "grad_norm"), Axis()),
        (f"Throughput{of_run}", record.series("step", rate[0]), Axis(unit="count", label=f"{rate[1]} per s")),
        (f"Peak memory{of_all}", record.series("step", "memory_bytes"), Axis(unit="B")),
    ]
    return [
        ("Loss", _loss_curve(record)),
        (info.title, _metric_curve(record, info)),
        *((title, _single(record, title, series, y)) for title, series, y in others if series[0]),
    ]


def health_map(record: RunRecord) -> dict[str, Any]:
    """Health of every site at every consultation of Tamiyo: epochs, and of each site its name and healths or None."""
    consultations = record.of_kind("signals")
    by_epoch = [{signal["site"]: signal["health"] for signal in event["signals"]} for event in consultations]
    sites = list(dict.fromkeys(site for healths in by_epoch for site in healths))
    return {
        "epochs": [event["epoch"] for event in consultations],
        "rows": [(site, [healths.get(site) for healths in by_epoch]) for site in sites],
    }


def health_colour(health: float) -> str:
    """Colour of a health in [0, 1]: from red over orange to grey."""
    share = 2 * min(max(health, 0.0), 1.0)
    low, high = (_HEALTH[0], _HEALTH[1]) if share < 1 else (_HEALTH[1], _HEALTH[2])
    mixed = [round(a + (share % 1 if share < 2 else 1.0) * (b - a)) for a, b in zip(low, high, strict=True)]
    return "#{:02x}{:02x}{:02x}".format(*mixed)


def forest(modules: list[GrownModule]) -> str:
    """Forest plot: gain, one-sided lower bound and threshold of every judged module."""
    judged = [(module, module.judgement) for module in modules if module.judgement is not None]
    numbers = [str(module.graft_id) for module, _ in judged]
    is_labelled = len(judged) <= _MAX_LABELLED

    def draw(axes: Axes) -> None:
        for row, (module, verdict) in enumerate(judged):
            colour = _KEPT if module.is_kept else _CULLED
            axes.plot([verdict["lower_bound"], verdict["gain"]], [row, row], color=colour, linewidth=2.2)
            axes.plot([verdict["lower_bound"]] * 2, [row - 0.12, row + 0.12], color=colour, linewidth=2.2)
            axes.plot(verdict["gain"], row, "o", color=colour, markersize=6)
            axes.plot([verdict["threshold"]] * 2, [row - 0.24, row + 0.24], color=INK, linewidth=1.2)
            if is_labelled:
                label = f"{module.graft_id}  {module.blueprint_id} at {tail(module.site, _MAX_SITE)}"
                text = axes.text(
                    0.0, row - 0.33, label, transform=axes.get_yaxis_transform(), fontsize=9, parse_math=False
                )
                text.set_in_layout(False)  # a long label must not shrink the axes
        axes.axvline(0, color=INK, linewidth=0.6, alpha=0.5)
        axes.set_ylim(len(judged) - 0.4, -0.85)
        axes.set_yticks(range(len(judged)), [""] * len(judged) if is_labelled else numbers, fontsize=7)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.08)
        axes.set_xlabel("gain: loss without the module − loss with it (nats)")
        axes.grid(True, axis="x")

    return svg(draw, height=0.75 + (0.55 if is_labelled else 0.16) * len(judged))


def _finest(record: RunRecord, of_steps: str, of_epochs: str, metric: str | None = None) -> _Series:
    """A series by step or by epoch, whichever has more points."""
    by_step, by_epoch = record.series("step", of_steps, metric), record.series("epoch", of_epochs, metric)
    return by_step if len(by_step[0]) >= len(by_epoch[0]) else by_epoch


def _loss_curve(record: RunRecord) -> Figure:
    """Training and validation loss, on a logarithmic axis unless a loss is not above 0."""
    training, validation = _finest(record, "loss", "train_loss"), record.series("validation", "val_loss")
    is_log = all(value > 0 for value in (*training[1], *validation[1]) if math.isfinite(value))
    return _train_and_val(record, Axis(is_log=is_log), training, validation)


def _metric_curve(record: RunRecord, info: MetricInfo) -> Figure:
    """A metric in training and validation."""
    training = _finest(record, "metrics", "train_metrics", info.name)
    y = Axis(unit="%") if info.unit == "%" else Axis(label=info.unit)
    return _train_and_val(record, y, training, record.series("validation", "val_metrics", info.name))


def _train_and_val(record: RunRecord, y: Axis, training: _Series, validation: _Series) -> Figure:
    drawn = (("training", _TRAIN, 1.1, training), ("validation", _VAL, 1.6, validation))
    series = [
        Series(name=name, colour=colour, width=width, x=points[0], y=points[1])
        for name, colour, width, given in drawn
        if (points := thinned(*given))[0]
    ]
    return Figure(x=Axis(label="step"), y=y, series=series, marks=_growth_marks(record.history.modules))


def _single(record: RunRecord, title: str, given: _Series, y: Axis) -> Figure:
    """One curve from 0 up."""
    x, values = thinned(*given)
    highest = max((value for value in values if math.isfinite(value)), default=0.0)
    y = dataclasses.replace(y, limits=(0.0, 1.06 * highest or 1.0))
    series = Series(name=title.lower(), colour=_VAL, x=x, y=values)
    marks = _growth_marks(record.history.modules)
    return Figure(x=Axis(label="step"), y=y, series=[series], marks=marks, height=1.9)


def _growth_marks(modules: list[GrownModule]) -> list[Mark]:
    is_labelled = len(modules) <= _MAX_LABELLED
    width = 1.1 if is_labelled else 0.6
    marks = []
    for module in modules:
        name = f"{module.graft_id} {module.blueprint_id} at {module.site}"
        label = str(module.graft_id) if is_labelled else ""
        born = Mark(x=module.step, colour=_BORN, dashes=(1.5, 1.5), label=label, text=f"{name} germinated", width=width)
        marks.append(born)
        if not module.is_live:
            colour, dashes, sign = (_KEPT, (), "✓") if module.is_kept else (_CULLED, (5.0, 2.0), "✗")
            text, label = f"{name} {module.verdict}", f"{label}{sign}" if is_labelled else ""
            marks.append(Mark(x=module.state_step, colour=colour, dashes=dashes, label=label, text=text, width=width))
    return marks
