"""Matplotlib, whatever the variable MPLBACKEND says, which is about windows: imports of it go through here."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys

if "matplotlib" not in sys.modules:
    # With a backend that it does not know, the import itself fails: at the report, after the training.
    _backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if _backend is not None:
            os.environ["MPLBACKEND"] = _backend
    if _backend:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = _backend  # as the import does

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    PercentFormatter,
)

try:
    FigureCanvasSVG(Figure())
except AttributeError:
    # Matplotlib asks once for the version of IPython, which another thread, such as MLflow's, is importing.
    importlib.import_module("IPython")  # waits for that
    FigureCanvasSVG(Figure())

__all__ = [
    "Axes",
    "Figure",
    "FigureCanvasSVG",
    "FixedLocator",
    "FuncFormatter",
    "LogLocator",
    "MaxNLocator",
    "NullFormatter",
    "NullLocator",
    "PercentFormatter",
    "rc_context",
]
