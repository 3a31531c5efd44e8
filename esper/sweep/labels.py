"""Short labels for the runs of a sweep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from esper.sweep.manifest import Member

__all__ = ["labels"]


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


def _short(override: str) -> str:
    """`learning_rate=0.05` for `optimization.learning_rate=0.05`."""
    key, equals, value = override.partition("=")
    return f"{key.rpartition('.')[2]}{equals}{value}"
