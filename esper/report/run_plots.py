"""Plots of one run's report, as SVG."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from esper.report.run_record import RunRecord
from esper.report.svg import INK, svg
from esper.tracking.history import GrownModule

__all__ = ["forest", "health_map", "learning_rate_curve", "loss_curve", "metric_curve"]

_TRAIN, _VAL, _KEPT, _CULLED, _BORN = "#8a94a6", "#3b82f6", "#16a34a", "#ea7317", "#a78bfa"
_MAX_LABELLED = 10
"""Number of modules above which labels would overlap."""

_Series = tuple[list[int], list[float]]
"""Steps and values."""


def loss_curve(record: RunRecord) -> str:
    """Training and validation loss against steps, on a logarithmic axis."""

    def draw(axes: Axes) -> None:
        _lines(axes, _finest(record, "loss", "train_loss"), record.series("validation", "val_loss"))
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        _growth_marks(axes, record.history.modules)

    return svg(draw, height=3.1)


def metric_curve(record: RunRecord) -> str:
    """The leading metric in training and validation, against steps."""
    info = record.history.headline

    def draw(axes: Axes) -> None:
        training = _finest(record, "metrics", "train_metrics", info.name)
        _lines(axes, training, record.series("validation", "val_metrics", info.name))
        if info.unit == "%":
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        elif info.unit:
            axes.set_ylabel(info.unit)
        _growth_marks(axes, record.history.modules)

    return svg(draw, height=3.1)


def learning_rate_curve(record: RunRecord) -> str:
    """The host's learning rate against steps."""

    def draw(axes: Axes) -> None:
        axes.plot(*_finest(record, "learning_rate", "learning_rate"), color=_VAL, linewidth=1.4)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("step")
        axes.grid(True)
        _growth_marks(axes, record.history.modules)

    return svg(draw, height=1.9)


def health_map(record: RunRecord) -> str:
    """Health of every site at every consultation of Tamiyo; low values are dark."""
    consultations = record.of_kind("signals")
    sites = [signal["site"] for signal in consultations[0]["signals"]]
    healths = [
        [{s["site"]: s["health"] for s in event["signals"]}.get(site) for event in consultations] for site in sites
    ]
    colours = LinearSegmentedColormap.from_list("health", ["#b3261e", "#f6a560", "#dfe4ec"])

    def draw(axes: Axes) -> None:
        values = [[float("nan") if health is None else health for health in row] for row in healths]
        mesh = axes.pcolormesh(values, cmap=colours, vmin=0, vmax=1, edgecolors="none")
        epochs = [event["epoch"] for event in consultations]
        shown = range(0, len(epochs), max(1, len(epochs) // 12))
        axes.set_xticks([index + 0.5 for index in shown], [str(epochs[index]) for index in shown])
        axes.set_yticks([index + 0.5 for index in range(len(sites))], sites)
        axes.tick_params(length=0)
        axes.invert_yaxis()
        axes.set_xlabel("after epoch")
        axes.figure.colorbar(mesh, ax=axes, label="health", pad=0.02)

    return svg(draw, height=1.0 + 0.24 * len(sites))


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
                label = f"{module.graft_id}  {module.blueprint_id} at {module.site}"
                axes.text(0.0, row - 0.33, label, transform=axes.get_yaxis_transform(), fontsize=9)
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


def _lines(axes: Axes, training: _Series, validation: _Series) -> None:
    axes.plot(*training, color=_TRAIN, linewidth=1.1, label="training")
    axes.plot(*validation, color=_VAL, linewidth=1.6, label="validation")
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(True)
    axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1.05), borderaxespad=0, handlelength=1.4)


def _growth_marks(axes: Axes, modules: list[GrownModule]) -> None:
    width = 1.1 if len(modules) <= _MAX_LABELLED else 0.6
    labels: dict[int, list[str]] = {}
    for module in modules:
        axes.axvline(module.step, color=_BORN, linewidth=width, linestyle=(0, (1.5, 1.5)))
        labels.setdefault(module.step, []).append(str(module.graft_id))
        if not module.is_live:
            colour, dashes = (_KEPT, "-") if module.is_kept else (_CULLED, (0, (5, 2)))
            axes.axvline(module.state_step, color=colour, linewidth=width, linestyle=dashes)
            labels.setdefault(module.state_step, []).append(f"{module.graft_id}{'✓' if module.is_kept else '✗'}")
    if len(modules) > _MAX_LABELLED:
        return
    for step, names in labels.items():
        where: Any = axes.get_xaxis_transform()
        axes.text(step, 1.01, " ".join(names), transform=where, ha="center", va="bottom", fontsize=8)
