"""Terminal output of a run: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

from rich.live import Live
from rich.text import Text

from esper.console import Console
from esper.contracts.events import Event
from esper.terminal.final_table import file_list, run_end
from esper.terminal.lines import Line, describe
from esper.terminal.panel import Panel
from esper.tracking.history import History

__all__ = ["Terminal"]

_REFRESH_HZ = 4
_PROGRESS_INTERVAL_S = 10.0
_PLAIN_COLUMNS = 100


class Terminal:
    """Context manager that prints a run's events; on exit, the result.

    On a terminal, the training thread only stores values, and rich's thread draws them. Growth, notices and the result
    stay in the scrollback; the live panel does not.

    Args:
        level: least severe message shown, a logging level name; above INFO there is no live panel either. The result,
            or why the run did not finish, is always printed.
        console: stdout by default.
    """

    def __init__(self, *, level: str, console: Console | None = None) -> None:
        self._level = logging.getLevelNamesMapping()[level]
        self._console = console or Console()
        if console is None and not self._console.is_terminal:
            self._console = Console(width=_PLAIN_COLUMNS)
        self._history = History()
        self._panel = Panel(self._history)
        self._files: dict[str, str] = {}
        self._live: Live | None = None
        self._printed_s = time.monotonic()
        self._is_closed = False

    def show(self, event: Event) -> None:
        """Show an event; called from the training thread."""
        entry = {"kind": event.kind, **dataclasses.asdict(event)}
        self._update(entry)
        if entry["kind"] == "run_started":
            self._start_live()
        for line in describe(entry, self._history.headline):
            if line.level >= self._level and not (line.is_progress and self._live):
                self._print(line)
        if entry["kind"] == "step" and self._is_progress_due():
            self._print(self._panel.progress_line())

    def replay(self, events: Iterable[dict[str, Any]]) -> None:
        """Load a whole journal without printing its events: for a run that is resumed, or has finished."""
        self._history = History()
        self._panel.history = self._history
        for entry in events:
            self._update(entry)

    def files(self, files: Mapping[str, str]) -> None:
        """Set the paths and commands (by name) that are printed below the result."""
        self._files = dict(files)

    def close(self) -> None:
        """Stop the live panel and print the result; safe to call twice."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._live is not None:
            self._live.stop()
        if self._history.started is not None:
            for part in run_end(self._history, columns=self._console.width):
                is_line = isinstance(part, Text) and not self._console.is_terminal
                self._console.print(part, highlight=False, soft_wrap=is_line)
            if self._files:
                self._console.print("", *file_list(self._files), sep="\n", highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _update(self, entry: dict[str, Any]) -> None:
        self._history.add(entry)
        self._panel.update(entry)

    def _start_live(self) -> None:
        wants_live = self._level <= logging.INFO and self._console.is_terminal and not self._console.is_dumb_terminal
        if wants_live and self._live is None:
            self._live = Live(
                get_renderable=self._panel.render,
                console=self._console,
                refresh_per_second=_REFRESH_HZ,
                transient=True,
            )
            self._live.start()

    def _is_progress_due(self) -> bool:
        waited_s = time.monotonic() - self._printed_s
        return self._live is None and self._level <= logging.INFO and waited_s >= _PROGRESS_INTERVAL_S

    def _print(self, line: Line) -> None:
        if self._console.is_terminal:
            self._console.print(line.wrapped(), highlight=False)
        else:
            self._console.print(line.plain(), highlight=False, soft_wrap=True)
        self._printed_s = time.monotonic()
