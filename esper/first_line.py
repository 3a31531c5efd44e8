"""A line on the terminal that moves from the first moment of a command, while its modules are imported."""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time

__all__ = ["begin", "end"]

_INTERVAL_S = 0.1
_RANKS = ("RANK", "SLURM_PROCID")
_line: _Line | None = None


def begin(text: str) -> None:
    """Show a text, until `end`; nothing where standard output is no terminal, or of another rank than the first."""
    global _line
    output = sys.__stdout__
    is_first = all(os.environ.get(name, "0") == "0" for name in _RANKS)
    if is_first and output is not None and output.isatty() and os.environ.get("TERM", "") not in ("", "dumb"):
        frames = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏" if output.encoding.lower().startswith("utf") else "-\\|/"
        _line = _Line(output.fileno(), text, frames)


def end() -> None:
    """Erase the line before anything else is printed; safe to call twice."""
    global _line
    line, _line = _line, None
    if line is not None:
        line.end()


class _Line:
    def __init__(self, file: int, text: str, frames: str) -> None:
        self._file, self._text = file, text
        self._frames = itertools.cycle(frames)
        self._started_s = time.monotonic()
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._draw()
        threading.Thread(target=self._move, name="esper-first-line", daemon=True).start()

    def end(self) -> None:
        with self._lock:
            self._is_over.set()
            self._write("\r\x1b[K")

    def _move(self) -> None:
        while not self._is_over.wait(_INTERVAL_S):
            self._draw()

    def _draw(self) -> None:
        with self._lock:
            if not self._is_over.is_set():
                seconds = int(time.monotonic() - self._started_s)
                self._write(f"\r{next(self._frames)} {self._text}  {seconds // 60}:{seconds % 60:02}")

    def _write(self, text: str) -> None:
        try:
            os.write(self._file, text.encode())
        except OSError:  # the terminal is gone
            self._is_over.set()
