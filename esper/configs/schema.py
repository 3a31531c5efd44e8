"""Declare a setting: default, help text and allowed values."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Allowed", "allowed", "setting"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """Values that a setting accepts; `low` and `high` are inclusive, `above` and `below` exclusive."""

    low: float | None = None
    above: float | None = None
    high: float | None = None
    below: float | None = None
    choices: tuple[str, ...] | None = None

    def admits(self, value: Any) -> bool:
        """Whether a single value (not a list) is allowed."""
        if self.choices is not None:
            return value in self.choices
        return (
            (self.low is None or value >= self.low)
            and (self.above is None or value > self.above)
            and (self.high is None or value <= self.high)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.choices is not None:
            return ", ".join(self.choices)
        bounds = (("at least", self.low), ("above", self.above), ("at most", self.high), ("below", self.below))
        return " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None) or "anything"


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    choices: Sequence[str] | None = None,
) -> Any:
    """Declare a dataclass field.

    Args:
        default: default value; lists and dicts are copied for each instance.
        help: what it does, in one sentence.
        low, above, high, below: bounds of a number, or of each number in a list.
        choices: allowed values of a string, or of each string in a list.
    """
    metadata = {
        "help": help,
        "allowed": Allowed(low=low, above=above, high=high, below=below, choices=tuple(choices) if choices else None),
    }
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def allowed(field: dataclasses.Field[Any]) -> Allowed:
    """Allowed values of a field declared with `setting`."""
    limits = field.metadata.get("allowed", Allowed())
    assert isinstance(limits, Allowed)
    return limits
