"""What every setting does, as `esper help` and docs/settings.md show it: from the dataclasses and the YAML files."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from esper.configs.compose import conf_folder
from esper.configs.implied import IMPLIED
from esper.configs.schema import Allowed, kind
from esper.configs.tolaria import TolariaConfig
from esper.sweep.launchers import QUEUES, queue_type

__all__ = ["Choice", "Group", "Setting", "groups", "shown"]

_LAUNCHER = "hydra/launcher"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A choice of a group: a YAML file.

    Attributes:
        name: such as `optimization=adamw`.
        file: path below the folder of YAML groups.
        comment: the comment that the file begins with.
        values: what it sets, by dotted name.
        includes: choices of this group and of others that it begins with.
    """

    name: str
    file: str
    comment: str
    values: Mapping[str, Any]
    includes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A setting.

    Attributes:
        key: dotted name.
        meaning: what it does.
        allowed: which values it takes.
        default: its value without any override.
        source: file that the default comes from.
        set_by: values that choices give it, by their names.
        follows: whether the default moves rather than contradict other settings.
    """

    key: str
    meaning: str
    allowed: str
    default: Any
    source: str
    set_by: Mapping[str, Any]
    follows: bool


@dataclass(kw_only=True)
class Group:
    """A group of settings, or the top level (without a name).

    Attributes:
        name: such as `optimization`.
        meaning: what it is about.
        default: name of the default choice; empty if there is none.
        choices: its YAML files.
        settings: its settings; none of groups that set those of others, such as `experiment`.
    """

    name: str
    meaning: str
    default: str = ""
    choices: list[Choice] = field(default_factory=list)
    settings: list[Setting] = field(default_factory=list)


@functools.cache
def groups() -> dict[str, Group]:
    """All groups by name, the top level last."""
    choices, defaults = _choices(), _default_choices()
    by_default = _defaults(choices, defaults)
    meanings = {"experiment": "Presets of settings of all groups.", "arm": "The arms of a fair comparison."}
    meanings[_LAUNCHER] = "Where the runs of a sweep are trained: esper-train -m hydra/launcher=local."
    found: dict[str, Group] = {}
    for key, owner, declared in _declared():
        name = _LAUNCHER if key.startswith("hydra.") else key.rpartition(".")[0]
        meaning = meanings.get(name) or (str(sys.modules[owner.__module__].__doc__).partition("\n")[0] if name else "")
        group = found.setdefault(name, Group(name=name, meaning=meaning, default=defaults.get(name, "")))
        declared_in = f"{owner.__module__.replace('.', '/')}.py"
        default = declared.default_factory() if callable(declared.default_factory) else declared.default
        value, source = by_default.get(key, (default, declared_in))
        hint = typing.get_type_hints(owner)[declared.name]
        setting = Setting(
            key=key,
            meaning=declared.metadata["help"],
            allowed=_allowed(hint, declared.metadata["allowed"]),
            default=value,
            source=source,
            set_by={choice.name: choice.values[key] for choice in choices.values() if key in choice.values},
            follows=key in IMPLIED,
        )
        if all(other.key != key for other in group.settings):  # launchers share some
            group.settings.append(setting)
    for choice in choices.values():
        name = choice.name.partition("=")[0]
        group = found.setdefault(name, Group(name=name, meaning=meanings.get(name, ""), default=defaults.get(name, "")))
        group.choices.append(choice)
    top = found.pop("")
    top.meaning = "Settings outside of the groups."
    return {**found, "": top}


def shown(value: Any) -> str:
    """A value as it is written on the command line, but for quotes."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {shown(item)}' for key, item in value.items())}}}"
    return value if isinstance(value, str) and value else json.dumps(value)


def _declared() -> Iterator[tuple[str, type, dataclasses.Field[Any]]]:
    """Dotted name, dataclass and field of each setting."""
    hints = typing.get_type_hints(TolariaConfig)
    for one in dataclasses.fields(TolariaConfig):
        group = hints[one.name]
        if isinstance(group, type) and dataclasses.is_dataclass(group):
            yield from ((f"{one.name}.{inner.name}", group, inner) for inner in dataclasses.fields(group))
        else:
            yield one.name, TolariaConfig, one
    for queue in QUEUES:
        options = queue_type(queue).options_type
        for option in dataclasses.fields(options):
            bases = reversed(options.__mro__)
            owner = next(base for base in bases if option.name in vars(base).get("__annotations__", ()))
            yield f"hydra.launcher.{option.name}", owner, option


def _allowed(hint: Any, allowed: Allowed) -> str:
    values = str(dataclasses.replace(allowed, registered=None))
    if allowed.choices:
        values += ", or what a plugin registers" if allowed.registered else ""
        return values if hint is str else f"{kind(hint)}: {values}"
    return kind(hint) if values == "anything" else f"{kind(hint)}, {values}"


def _choices() -> dict[str, Choice]:
    folder = conf_folder()
    found = {}
    for file in sorted(folder.glob("**/*.yaml")):
        group, name = file.parent.relative_to(folder).as_posix(), file.stem
        if group not in (".", "hydra/help"):
            found[f"{group}={name}"] = _choice(group, name, file.read_text(encoding="utf-8"))
    return found


def _choice(group: str, name: str, text: str) -> Choice:
    lines = text.splitlines()
    is_global = lines[:1] == ["# @package _global_"]
    lines = lines[is_global:]
    end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    content = yaml.safe_load(text) or {}
    includes = tuple(_included(group, entry) for entry in content.pop("defaults", ()) if entry != "_self_")
    content.pop("_target_", None)
    return Choice(
        name=f"{group}={name}",
        file=f"conf/{group}/{name}.yaml",
        comment=" ".join(line.removeprefix("#").strip() for line in lines[:end]),
        values=dict(_flat(content, "" if is_global else f"{group.replace('/', '.')}.")),
        includes=includes,
    )


def _included(group: str, entry: str | dict[str, str]) -> str:
    if isinstance(entry, str):
        return f"{group}={entry}"
    ((other, name),) = entry.items()  # such as {"override /model": "vit"}
    return f"{other.removeprefix('override').strip(' /')}={name}"


def _flat(content: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict) and prefix in ("", "hydra.", "hydra.sweeper."):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _default_choices() -> dict[str, str]:
    """The choice of each group in the main file's defaults list, in its order."""
    entries = yaml.safe_load((conf_folder() / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    pairs = [next(iter(entry.items())) for entry in entries if isinstance(entry, dict)]
    return {group: f"{group}={name}" for group, name in pairs if name and not group.startswith("override")}


def _defaults(choices: Mapping[str, Choice], defaults: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    """The values that the default choices give, and their files."""
    found: dict[str, tuple[Any, str]] = {}

    def apply(choice: Choice) -> None:
        for included in choice.includes:
            apply(choices[included])
        found.update({key: (value, choice.file) for key, value in choice.values.items()})

    for name in defaults.values():
        apply(choices[name])
    return found
