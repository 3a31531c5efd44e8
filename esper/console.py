"""Rich's console for what Esper prints, without control characters of names and messages."""

from __future__ import annotations

from collections.abc import Iterable

import rich.console
from rich.segment import Segment

from esper.redact import printable

__all__ = ["Console"]


class Console(rich.console.Console):
    """Rich's console; its own control codes stay, those in text are written out."""

    def _render_buffer(self, buffer: Iterable[Segment]) -> str:
        return super()._render_buffer(
            segment if segment.control else Segment(printable(segment.text), segment.style) for segment in buffer
        )
