"""The live figure of a notebook: progress, latest metrics and curves, updated in place."""

from __future__ import annotations

import importlib
import math
import sys
import time
from collections.abc import Sequence
from html import escape
from typing import Any

from esper.contracts.metrics import MetricInfo
from esper.terminal.panel import Panel
from esper.tracking.formatting import clock, loss, metric
from esper.tracking.history import History

__all__ = ["NotebookFigure", "curves", "is_notebook"]

_INTERVAL_S = 1.0
_WIDTH, _HEIGHT, _MARGIN = 330, 150, 22
_COLORS = {"train": "#7c5ce0", "val": "#16a34a"}
_FAINT = "opacity:.65"


def is_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None


class NotebookFigure:
    """Output of a notebook's cell, drawn anew at most once a second."""

    def __init__(self, panel: Panel) -> None:
        self._panel = panel
        self._handle: Any = None
        self._drawn_s = 0.0

    def start(self) -> None:
        """Show it below the cell."""
        ipython = _ipython()
        self._handle = ipython.display(ipython.HTML(self._html()), display_id=True)

    def refresh(self, *, is_last: bool = False) -> None:
        """Draw the latest values, unless that was done a moment ago."""
        if self._handle is None or (time.monotonic() - self._drawn_s < _INTERVAL_S and not is_last):
            return
        self._drawn_s = time.monotonic()
        self._handle.update(_ipython().HTML(self._html()))

    def stop(self) -> None:
        """Draw the last values; it stays."""
        self._panel.doing = (self._panel.history.ended or {"status": "ended"})["status"]
        self.refresh(is_last=True)

    def _html(self) -> str:
        panel = self._panel
        started = panel.history.started
        if started is None:
            return f'<div style="{_FAINT}">{escape(panel.doing)} …</div>'
        pace = panel.pace
        share = 100 * pace.step / max(pace.total, 1)
        left = "" if panel.history.ended else f" · {clock(pace.seconds_left())} left"
        rows = "".join(
            f'<tr><td style="text-align:left;{_FAINT}">{name}</td><td>loss {loss(value)}</td>'
            f"<td>{escape(figure)}</td><td>{escape(more)}</td></tr>"
            for name, value, figure, more in panel.rows()
        )
        seeds = "".join(
            f'<tr><td style="text-align:left">{escape(module.site)}</td><td>{escape(module.blueprint_id)}</td>'
            f"<td>{escape(module.verdict)}</td></tr>"
            for module in panel.history.modules
        )
        return (
            f"<div><b>{escape(started['experiment_name'])}</b>"
            f'<span style="{_FAINT}">/{escape(started["run_name"])} · {escape(started["device"])}</span></div>'
            '<div style="background:#8884;border-radius:4px;height:8px;max-width:680px;margin:6px 0">'
            f'<div style="background:#7c5ce0;border-radius:4px;height:8px;width:{share:.1f}%"></div></div>'
            f"<div>{escape(panel.doing)} · epoch {panel.epochs} · step {pace.step:,}/{pace.total:,}{left}</div>"
            f"<table>{rows}</table>{curves(panel.history)}{f'<table>{seeds}</table>' if seeds else ''}"
        )


def _ipython() -> Any:
    return importlib.import_module("IPython.display")  # there in a notebook; Esper does not need it otherwise


def curves(history: History) -> str:
    """Loss and leading metric of every epoch as HTML; dotted lines: growth. Empty with fewer than two epochs."""
    epochs, info = history.epochs, history.headline
    if len(epochs) < 2:
        return ""
    numbers = [event["epoch"] for event in epochs]
    growth = sorted({module.epoch for module in history.modules if module.epoch is not None})
    losses = {split: [event[f"{split}_loss"] for event in epochs] for split in _COLORS}
    metrics = {split: [event[f"{split}_metrics"].get(info.name) for event in epochs] for split in _COLORS}
    charts = _chart("loss", numbers, losses, growth, None) + _chart(info.label, numbers, metrics, growth, info)
    return f'<div style="display:flex;flex-wrap:wrap;gap:20px">{charts}</div>'


def _chart(
    title: str,
    epochs: Sequence[int],
    series: dict[str, list[float | None]],
    growth: Sequence[int],
    info: MetricInfo | None,
) -> str:
    values = [value for points in series.values() for value in points if value is not None and math.isfinite(value)]
    if not values:
        return ""
    low, high = min(values), max(values)
    span = high - low or 1.0

    def x(epoch: float) -> float:
        return _MARGIN + (_WIDTH - 2 * _MARGIN) * (epoch - epochs[0]) / (epochs[-1] - epochs[0])

    def y(value: float) -> float:
        return _HEIGHT - _MARGIN - (_HEIGHT - 2 * _MARGIN) * (value - low) / span

    def text(value: float) -> str:
        return loss(value) if info is None else metric(value, info)

    parts = [
        f'<line x1="{x(epoch):.1f}" x2="{x(epoch):.1f}" y1="{_MARGIN}" y2="{_HEIGHT - _MARGIN}" '
        'stroke="currentColor" stroke-dasharray="2 3" opacity=".5"/>'
        for epoch in growth
        if epochs[0] <= epoch <= epochs[-1]
    ]
    legend = ""
    for name, points in series.items():
        shown = [
            f"{x(epoch):.1f},{y(value):.1f}"
            for epoch, value in zip(epochs, points, strict=True)
            if value is not None and math.isfinite(value)
        ]
        color = _COLORS[name]
        parts.append(f'<polyline points="{" ".join(shown)}" fill="none" stroke="{color}" stroke-width="1.8"/>')
        legend += f'<tspan fill="{color}"> {name}</tspan>'
    labels = [
        f'<text x="{_MARGIN}" y="12" font-weight="600">{escape(title)}{legend}</text>',
        f'<text x="{_WIDTH - _MARGIN}" y="{_MARGIN - 4}" text-anchor="end" opacity=".65">{escape(text(high))}</text>',
        f'<text x="{_WIDTH - _MARGIN}" y="{_HEIGHT - _MARGIN + 14}" text-anchor="end" opacity=".65">'
        f"{escape(text(low))} · epoch {epochs[-1]}</text>",
        f'<text x="{_MARGIN}" y="{_HEIGHT - _MARGIN + 14}" opacity=".65">epoch {epochs[0]}</text>',
    ]
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}" fill="currentColor" '
        f'font-family="sans-serif" font-size="11">{"".join(parts + labels)}</svg>'
    )
