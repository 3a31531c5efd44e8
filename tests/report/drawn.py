"""The limits of the axes of a plot, which is otherwise drawn as SVG."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest

from esper.report.plotting import Axes, Figure

Limits = tuple[float, float]


def limits(module: ModuleType, plot: Callable[[], str]) -> tuple[Limits, Limits]:
    """Of x and y, of what a function of a module with plots draws."""
    found: list[tuple[Limits, Limits]] = []

    def draw_only(draw: Callable[[Axes], None], *, height: float) -> str:
        axes = Figure().add_subplot()
        draw(axes)
        found.append((axes.get_xlim(), axes.get_ylim()))
        return ""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "svg", draw_only)
        plot()
    (only,) = found
    return only
