"""Labels of arms where there is little room: lines end at spaces and signs, inside a word only if it is too long."""

from __future__ import annotations

import re
from dataclasses import dataclass

from markupsafe import Markup
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.text import Text

__all__ = ["Label", "breakable", "wrapped"]

_PIECE = re.compile(r".+?(?:[=_,[/]\s*|\s+|[-.](?!\d)|$)")
"""What stays on one line, numbers with it."""


def breakable(label: str) -> Markup:
    """A label for a page, which may break between its pieces."""
    return Markup("<wbr>").join(_PIECE.findall(label))


def wrapped(label: str, width: int) -> list[str]:
    """The lines of a label, of `width` characters at most."""
    lines, line = [], ""
    for piece in _PIECE.findall(label):
        if len((line + piece).rstrip()) <= width:
            line += piece
            continue
        lines += [line.rstrip()] if line else []
        line = piece
        while len(line.rstrip()) > width:
            lines.append(line[:width])
            line = line[width:]
    return [*lines, line.rstrip()]


@dataclass(frozen=True)
class Label:
    """A label in a table of the terminal."""

    text: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text("\n".join(wrapped(self.text, options.max_width)))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(max(map(len, _PIECE.findall(self.text)), default=0), len(self.text))
