"""Rich's console for what Esper prints, without control characters of names and messages."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import rich.console
from rich.segment import Segment

from esper.redact import printable

__all__ = ["Console", "shown_waiting"]


class Console(rich.console.Console):
    """Rich's console; its own control codes stay, those in text are written out.

    In a notebook too it writes to its file, where rich's writes into the cell instead. Only what is a terminal gets
    control codes: the kernels of notebooks and some CI systems set FORCE_COLOR, by which rich takes a file for one.
    """

    def __init__(self, **options: Any) -> None:
        is_terminal = (options.get("file") or sys.stdout).isatty()
        super().__init__(**{"force_jupyter": False, "force_terminal": is_terminal, **options})

    def _render_buffer(self, buffer: Iterable[Segment]) -> str:
        return super()._render_buffer(
            segment if segment.control else Segment(printable(segment.text), segment.style) for segment in buffer
        )


@contextlib.contextmanager
def shown_waiting(what: str) -> Iterator[None]:
    """Context manager: show on a terminal, until its end, what the user waits for."""
    console = Console()
    if console.is_terminal and not console.is_dumb_terminal:
        with console.status(what, spinner="dots" if console.encoding.startswith("utf") else "line"):
            yield
    else:
        yield
