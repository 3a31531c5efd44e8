"""Render a Matplotlib plot as inline SVG in the page's text colour."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable
from typing import Any

from esper.report.plotting import Axes, Figure, FigureCanvasSVG, rc_context

__all__ = ["INK", "svg"]

INK = "#010203"
"""Placeholder for the page's text colour; replaced by `currentColor`."""
_STYLE: Any = {
    "font.size": 9.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "esper",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "grid.color": INK,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.6,
}
_LOCK = threading.Lock()


def svg(draw: Callable[[Axes], None], *, height: float) -> str:
    """An SVG element with what `draw` plots, 5.2 inches wide; `height` in inches."""
    with _LOCK, rc_context(_STYLE):  # rcParams are global; Figure, unlike pyplot, has no other global state
        figure = Figure(figsize=(5.2, height), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        draw(axes)
        _lay_out(figure)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    return text.replace(INK, "currentColor")


def _lay_out(figure: Figure) -> None:
    """Place axes and labels now; `savefig` would draw everything once more to do it."""
    FigureCanvasSVG(figure)  # texts are measured as they will be drawn
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.execute(figure)
    figure.set_layout_engine("none")
