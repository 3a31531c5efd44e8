"""Declare a setting: default, help text and allowed values."""

from __future__ import annotations

import copy
import dataclasses
import re
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from esper import plugins

__all__ = ["Allowed", "kind", "setting", "settings"]

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """Values that a setting accepts; `low` and `high` are inclusive, `above` and `below` exclusive.

    With `registered`, so are the names of that kind which plugins have registered, beside `choices`. With `pattern`, a
    regular expression, `choices` only show what it matches.
    """

    low: float | None = None
    above: float | None = None
    high: float | None = None
    below: float | None = None
    choices: tuple[str, ...] | None = None
    registered: str | None = None
    pattern: str | None = None

    def admits(self, value: Any) -> bool:
        """Whether a single value (not a list) is allowed."""
        if self.pattern is not None:
            return re.fullmatch(self.pattern, value, re.ASCII) is not None
        if self.choices is not None:
            return value in self.choices or (
                self.registered is not None and plugins.find(self.registered, value) is not None
            )
        return (
            (self.low is None or value >= self.low)
            and (self.above is None or value > self.above)
            and (self.high is None or value <= self.high)
            and (self.below is None or value < self.below)
        )

    @property
    def names(self) -> list[str]:
        """All that a string may be; [] if it may be anything."""
        return [*(self.choices or ()), *(plugins.names(self.registered) if self.registered else ())]

    def __str__(self) -> str:
        if names := self.names:
            return ", ".join(names)
        bounds = (("at least", self.low), ("above", self.above), ("at most", self.high), ("below", self.below))
        texts = [
            f"{word} {bound if isinstance(bound, int) else f'{bound:g}'}" for word, bound in bounds if bound is not None
        ]
        return " and ".join(texts) or "anything"


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    choices: Sequence[str] | None = None,
    registered: str | None = None,
    pattern: str | None = None,
) -> Any:
    """Declare a dataclass field.

    Args:
        default: default value; lists and dicts are copied for each instance.
        help: what it does, in one sentence.
        low, above, high, below: bounds of a number, or of each number in a list.
        choices: allowed values of a string, or of each string in a list.
        registered: kind of plugin whose names are allowed beside `choices`.
        pattern: regular expression of the allowed strings, of which `choices` then show the forms.
    """
    allowed = tuple(choices) if choices else None
    metadata = {
        "help": help,
        "allowed": Allowed(
            low=low, above=above, high=high, below=below, choices=allowed, registered=registered, pattern=pattern
        ),
    }
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def settings(schema: type, prefix: str = "") -> Iterator[tuple[str, Any, Allowed]]:
    """Yield dotted name, type and allowed values of each group and setting; a group precedes its settings."""
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        key, hint = prefix + field.name, hints[field.name]
        yield key, hint, field.metadata.get("allowed", Allowed())
        if dataclasses.is_dataclass(hint):
            yield from settings(typing.cast(type, hint), f"{key}.")


def kind(hint: Any) -> str:
    """Describe the type of a setting, such as `a whole number, or null` for `int | None`."""
    if isinstance(hint, types.UnionType):
        return f"{kind(typing.get_args(hint)[0])}, or null"
    if typing.get_origin(hint) is list:
        return f"a list, each {kind(typing.get_args(hint)[0])}"
    if typing.get_origin(hint) is dict:
        return "a group {NAME: VALUE, ...}"
    return _KINDS.get(hint, "a group of settings")
