"""Terminal output of a run: a live display on a terminal and in a notebook, plain lines elsewhere."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

from rich.live import Live
from rich.text import Text

from esper.console import Console
from esper.contracts.events import Event
from esper.contracts.progress import Progress
from esper.terminal.final_table import file_list, run_end
from esper.terminal.lines import Line, describe
from esper.terminal.notebook import NotebookFigure, is_notebook
from esper.terminal.panel import Panel
from esper.tracking.history import History

__all__ = ["Terminal"]

_REFRESH_HZ = 4
_PROGRESS_INTERVAL_S = 10.0
_FIRST_PROGRESS_S = 2.0
_PLAIN_COLUMNS = 100


class Terminal:
    """Context manager that prints a run's events; on exit, the result.

    On a terminal, the training thread only stores values, and rich's thread draws them. Epochs, growth, notices and the
    result stay in the scrollback; the live panel does not. In a notebook a figure is updated in place.

    Args:
        level: least severe message shown, a logging level name; above INFO there is no live display either. The result,
            or why the run did not finish, is always printed.
        console: stdout by default.
    """

    def __init__(self, *, level: str, console: Console | None = None) -> None:
        self._level = logging.getLevelNamesMapping()[level]
        self._console = console or Console()
        if console is None and not self._console.is_terminal:
            self._console = Console(width=_PLAIN_COLUMNS)
        self._history = History()
        self._panel = Panel(self._history, is_ascii=not self._console.encoding.startswith("utf"))
        self._files: dict[str, str] = {}
        self._live: Live | NotebookFigure | None = None
        if self._level <= logging.INFO:
            if self._console.is_terminal and not self._console.is_dumb_terminal:
                draw = self._panel.render
                self._live = Live(
                    get_renderable=draw, console=self._console, refresh_per_second=_REFRESH_HZ, transient=True
                )
            elif console is None and is_notebook():
                self._live = NotebookFigure(self._panel)
        self._printed_s = math.inf  # nothing yet
        self._line_interval_s = _FIRST_PROGRESS_S
        self._is_closed = False

    def show(self, event: Event) -> None:
        """Show an event; called from the training thread."""
        entry = {"kind": event.kind, **dataclasses.asdict(event)}
        self._history.add(entry)
        self._panel.update(entry)
        for line in describe(entry, self._history.headline, is_best=self._history.best is entry):
            if line.level >= self._level:
                self._print(line)
        self._show_progress()

    def progress(self, progress: Progress) -> None:
        """Show what the training does; called from the training thread, a few times a second."""
        self._panel.progress(progress)
        self._show_progress()

    def replay(self, events: Iterable[dict[str, Any]]) -> None:
        """Load a whole journal without printing its events: for a run that is resumed, or has finished."""
        self._history = History()
        self._panel.history = self._history
        for entry in events:
            self._history.add(entry)
            self._panel.store(entry)
        self._panel.replayed()

    def files(self, files: Mapping[str, str]) -> None:
        """Set the paths and commands (by name) that are printed below the result."""
        self._files = dict(files)

    def close(self) -> None:
        """Stop the live display and print the result; safe to call twice."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._live is not None:
            self._live.stop()
        if self._history.started is not None:
            for part in run_end(self._history, columns=self._console.width):
                self._console.print(part, highlight=False, soft_wrap=isinstance(part, Text))
            if self._files:
                self._console.print("", *file_list(self._files), sep="\n", highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _show_progress(self) -> None:
        """Draw the figure of a notebook, or print a line now and then where nothing is live."""
        if isinstance(self._live, NotebookFigure):
            self._live.refresh()
        elif self._live is None and self._level <= logging.INFO and self._is_line_due():
            self._print(self._panel.progress_line())
            self._line_interval_s = _PROGRESS_INTERVAL_S

    def _is_line_due(self) -> bool:
        return self._panel.has_loss and time.monotonic() - self._printed_s >= self._line_interval_s

    def _print(self, line: Line) -> None:
        shown = line.wrapped(self._console.width) if self._console.is_terminal else line.plain()
        self._console.print(shown, highlight=False, soft_wrap=isinstance(shown, Text))
        self._printed_s = time.monotonic()
