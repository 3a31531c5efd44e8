"""How a sweep's members, and times, are told to people."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:  # `esper doctor` prints where the settings cannot even be imported
    from esper.launch.manifest import Member

__all__ = ["duration", "labels", "table_console"]

_WIDE = 1000


def labels(members: Sequence[Member]) -> dict[str, str]:
    """What tells each member from the others, by name: the overrides that not all of them have.

    The name itself where that leaves nothing, or nothing of its own.
    """
    counts = Counter(override for member in members for override in set(member.overrides))
    found = {
        member.name: " ".join(_short(one) for one in member.overrides if counts[one] < len(members))
        for member in members
    }
    uses = Counter(found.values())
    return {name: label if label and uses[label] == 1 else name for name, label in found.items()}


def duration(seconds: float) -> str:
    """`5 h 20 min`, `12 min`, `8 s`, rounded up to seconds."""
    whole = math.ceil(seconds)
    minutes, hours = whole // 60, whole // 3600
    return f"{hours} h {minutes % 60:02} min" if hours else f"{minutes} min" if minutes else f"{whole} s"


def table_console() -> Console:
    """Where tables go: folded to the terminal's width, on whole lines into files and pipes."""
    return Console(width=None if sys.stdout.isatty() else _WIDE)


def _short(override: str) -> str:
    """`learning_rate=0.05` for `optimization.learning_rate=0.05`."""
    key, equals, value = override.partition("=")
    return f"{key.rpartition('.')[2]}{equals}{value}"
