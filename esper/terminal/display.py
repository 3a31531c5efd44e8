"""What a user sees of a run while it trains: a live display on a terminal, plain lines anywhere else."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from esper.contracts.events import Event
from esper.terminal.lines import Line, describe
from esper.terminal.panel import Panel
from esper.terminal.tables import ending, places
from esper.tracking.history import History

__all__ = ["Terminal"]

_REFRESH_HZ = 4
_PROGRESS_INTERVAL_S = 10.0
_PLAIN_COLUMNS = 100


class Terminal:
    """Owner of the terminal while a run lasts; leaving it prints how the run ended.

    On a terminal, the thread that trains only stores values; rich's own thread draws them. Growth, notices and the
    result stay in the scrollback, the live part does not.

    Args:
        level: least severe message shown, a logging level name; above INFO there is no live part either. The result
            and the reason of an unfinished run are always printed.
        console: where to; stdout by default.
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
        """Take in an event; called from the thread that trains."""
        entry = {"kind": event.kind, **dataclasses.asdict(event)}
        self._take(entry)
        if entry["kind"] == "run_started":
            self._begin()
        for line in describe(entry):
            if line.level >= self._level and not (line.is_progress and self._live):
                self._print(line)
        if entry["kind"] == "step" and self._is_progress_due():
            self._print(self._panel.progress_line())

    def replay(self, events: Iterable[dict[str, Any]]) -> None:
        """Take in the lines of a journal, all from the start, without printing them one by one.

        For what earlier processes did in a run that goes on here, and for a run that has finished.
        """
        self._history = History()
        self._panel.history = self._history
        for entry in events:
            self._take(entry)

    def files(self, files: Mapping[str, str]) -> None:
        """Say where things are (name: path or command), for the end."""
        self._files = dict(files)

    def close(self) -> None:
        """Give the terminal back and print how the run ended; safe to call twice."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._live is not None:
            self._live.stop()
        if self._history.started is not None:
            for part in ending(self._history, columns=self._console.width):
                is_line = isinstance(part, Text) and not self._console.is_terminal
                self._console.print(part, highlight=False, soft_wrap=is_line)
            if self._files:
                self._console.print("", *places(self._files), sep="\n", highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _take(self, entry: dict[str, Any]) -> None:
        self._history.add(entry)
        self._panel.take(entry)

    def _begin(self) -> None:
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
