"""`esper help`: what settings, groups and their choices are; and the same as a page of Markdown."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from esper.commands import add_command

if TYPE_CHECKING:
    from esper.reference.settings import Choice, Group, Setting

__all__ = ["add_help", "explain_setting", "settings_page"]

_COLUMNS = 116


def add_help(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(commands, "help", _help, "say what a setting of esper-train, a group or a choice does")
    parser.add_argument(
        "name", nargs="?", default="", metavar="NAME",
        help="such as optimization.max_epochs, max_epochs, optimization or optimization=adamw (default: all groups)",
    )  # fmt: skip


def _help(options: argparse.Namespace) -> int:
    sys.stdout.write("\n".join(explain_setting(options.name)) + "\n")
    return 0


def explain_setting(name: str) -> list[str]:
    """What `esper help NAME` prints.

    Args:
        name: dotted name of a setting or its last part; a group; a choice (GROUP=NAME); empty: all groups.

    Raises:
        ConfigError: there is nothing of that name; similar names.
    """
    from esper.configs.explain import nearest
    from esper.errors import ConfigError
    from esper.reference.settings import groups

    known = groups()
    if not name:
        return list(_overview(known.values()))
    settings = {setting.key: setting for group in known.values() for setting in group.settings}
    choices = {choice.name: choice for group in known.values() for choice in group.choices}
    if name in choices:
        return list(_choice(choices[name]))
    name, equals, value = name.partition("=")
    if name in known and equals:
        raise ConfigError(
            f"{name}={value}: there is no such choice; there are "
            f"{', '.join(choice.name.partition('=')[2] for choice in known[name].choices)}"
        )
    if name in settings:
        return list(_setting(settings[name]))
    if name in known:
        return list(_group(known[name]))
    found = [setting for key, setting in settings.items() if key.rpartition(".")[2] == name]
    if not found:
        leaves = {key.rpartition(".")[2]: key for key in settings}
        similar = nearest(name, [*settings, *known, *choices], num=3) or nearest(name, leaves, num=3)
        raise ConfigError(f"esper help {name}: no such setting, group or choice{similar or '; esper help lists them'}")
    return [line for number, setting in enumerate(found) for line in ([""] * (number > 0) + list(_setting(setting)))]


def _overview(known: Any) -> Iterator[str]:
    yield "esper-train GROUP=CHOICE KEY=VALUE …    esper help GROUP, KEY or GROUP=CHOICE tells more"
    for group in known:
        yield ""
        yield f"{group.name or 'without a group'}  {group.meaning}"
        names = ", ".join(choice.name.partition("=")[2] for choice in group.choices)
        default = f" (default: {group.default.partition('=')[2]})" if group.default else ""
        if names:
            yield from _wrapped(f"choices: {names}{default}", indent=4)
        if group.settings:
            keys = ", ".join(setting.key.rpartition(".")[2] for setting in group.settings)
            yield from _wrapped(f"settings: {keys}", indent=4)


def _group(group: Group) -> Iterator[str]:
    yield f"{group.name}  {group.meaning}"
    for choice in group.choices:
        mark = " (default)" if choice.name == group.default else ""
        yield ""
        yield f"{choice.name}{mark}"
        yield from _wrapped(choice.comment, indent=4)
    for setting in group.settings:
        yield ""
        yield f"{setting.key}={_default(setting)}"
        yield from _wrapped(setting.meaning, indent=4)


def _choice(choice: Choice) -> Iterator[str]:
    yield f"{choice.name}  ({choice.file})"
    yield from _wrapped(choice.comment, indent=4)
    for included in choice.includes:
        yield f"    begins with {included}"
    yield from (f"    {key}={_shown(value)}" for key, value in choice.values.items())


def _setting(setting: Setting) -> Iterator[str]:
    yield setting.key
    yield from _wrapped(setting.meaning, indent=4)
    follows = "; follows other settings where it would contradict them" if setting.follows else ""
    rows = {"allowed": setting.allowed, "default": f"{_default(setting)}, from {setting.source}{follows}"}
    if setting.set_by:
        rows["set by"] = "; ".join(f"{choice} to {_shown(value)}" for choice, value in setting.set_by.items())
    for heading, text in rows.items():
        first, *more = _wrapped(text, indent=13)
        yield f"    {heading:<9}{first.lstrip()}"
        yield from more


def settings_page() -> str:
    """docs/settings.md: the whole reference."""
    from esper.reference.settings import groups

    known = groups()
    lines = [
        "# Settings",
        "",
        "Every setting of `esper-train`, with its default and the values it takes. Made from `esper/configs/` and "
        "`conf/` by",
        "`python scripts/settings_page.py`; `esper help NAME` prints the same for one setting, group or choice.",
        "",
        " · ".join(f"[{name or 'others'}](#{(name or 'others').replace('/', '')})" for name in known),
    ]
    lines[-1:] = _wrapped(lines[-1], indent=0)
    for name, group in known.items():
        lines += ["", f"## {name or 'others'}", "", *_wrapped(group.meaning, indent=0)]
        if group.choices:
            lines.append("")
        for choice in group.choices:
            mark = " (default)" if choice.name == group.default else ""
            lines += _item(f"`{choice.name}`{mark}" + (f": {choice.comment}" if choice.comment else ""))
        if group.settings:
            lines.append("")
        for setting in group.settings:
            follows = " The default follows other settings." if setting.follows else ""
            value = f"**`{setting.key}`** = `{_default(setting)}`"
            lines += _item(f"{value} ({setting.allowed}): {setting.meaning}.{follows}")
    return "\n".join(lines) + "\n"


def _default(setting: Setting) -> str:
    return _shown(setting.default)


def _shown(value: Any) -> str:
    from esper.reference.settings import shown

    return shown(value)


def _item(text: str) -> list[str]:
    return textwrap.wrap(text, _COLUMNS, initial_indent="- ", subsequent_indent="  ", **_WHOLE_WORDS)


def _wrapped(text: str, *, indent: int) -> list[str]:
    return textwrap.wrap(text, _COLUMNS, initial_indent=" " * indent, subsequent_indent=" " * indent, **_WHOLE_WORDS)


_WHOLE_WORDS: Any = {"break_long_words": False, "break_on_hyphens": False}
