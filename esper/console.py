"""Rich's console for what Esper prints, without control characters of names and messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import rich.console
from rich.segment import Segment

from esper.redact import printable

__all__ = ["Console"]


class Console(rich.console.Console):
    """Rich's console; its own control codes stay, those in text are written out.

    It writes to its file in a notebook too, where rich's writes into the cell instead, whatever its file is.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"force_jupyter": False, **options})

    def _render_buffer(self, buffer: Iterable[Segment]) -> str:
        return super()._render_buffer(
            segment if segment.control else Segment(printable(segment.text), segment.style) for segment in buffer
        )
