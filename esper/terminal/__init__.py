"""What `esper-train` prints: live panel, lines, final table."""

from __future__ import annotations

import sys

from esper.console import Console

__all__ = ["table_console"]

_PIPE_COLUMNS = 1000


def table_console() -> Console:
    """Console for tables: wrapped to the terminal's width, unwrapped into files and pipes."""
    return Console(width=None if sys.stdout.isatty() else _PIPE_COLUMNS)
