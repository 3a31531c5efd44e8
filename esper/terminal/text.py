"""Durations and tables as text."""

from __future__ import annotations

import math
import sys

from rich.console import Console

__all__ = ["duration", "table_console"]

_WIDE = 1000


def duration(seconds: float) -> str:
    """`5 h 20 min`, `12 min`, `8 s`, rounded up to seconds."""
    whole = math.ceil(seconds)
    minutes, hours = whole // 60, whole // 3600
    return f"{hours} h {minutes % 60:02} min" if hours else f"{minutes} min" if minutes else f"{whole} s"


def table_console() -> Console:
    """Where tables go: folded to the terminal's width, on whole lines into files and pipes."""
    return Console(width=None if sys.stdout.isatty() else _WIDE)
