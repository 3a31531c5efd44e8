"""Settings of type text keep the text that was typed, where Hydra and YAML would read a number, true or null."""

from __future__ import annotations

import functools
import os
import shlex
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from antlr4 import CommonTokenStream, InputStream
from antlr4.error.ErrorListener import ErrorListener
from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions
from hydra.core.override_parser.types import ChoiceSweep, Quote, QuotedString
from hydra.grammar.gen.OverrideLexer import OverrideLexer
from hydra.grammar.gen.OverrideParser import OverrideParser

from esper.configs.schema import settings
from esper.configs.tolaria import TolariaConfig

__all__ = ["keep_yaml_text", "one_value", "override", "quote_text"]

_TYPED = (OverrideLexer.INT, OverrideLexer.FLOAT, OverrideLexer.BOOL)
_FOLDERS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")
_FUNCTIONS = frozenset(create_functions().functions)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """What a setting takes: text, null, and several of them in a list."""

    is_text: bool
    may_be_null: bool
    is_list: bool


def override(key: str, value: str) -> str:
    """`KEY=VALUE` as Hydra reads any text, quoted for a shell."""
    quote = Quote.single if '"' in value else Quote.double
    return shlex.quote(f"{key}={QuotedString(text=value, quote=quote).with_quotes()}")


def one_value(given: str) -> str:
    """What to write instead of several values `KEY=A,B` that are meant as one; empty if the setting takes no such."""
    key = given.partition("=")[0]
    kind = _kinds().get(key.lstrip("+"))
    values: Any = OverridesParser.create().parse_override(given).value()
    if kind is None or not isinstance(values, ChoiceSweep):
        return ""
    if kind.is_list:
        items = [item for value in values.list for item in (value if isinstance(value, list) else [value])]
        return shlex.quote(f"{key}=[{','.join(map(_item, items))}]")
    return override(
        key, ",".join(value.text if isinstance(value, QuotedString) else str(value) for value in values.list)
    )


def _item(value: Any) -> str:
    return value.with_quotes() if isinstance(value, QuotedString) else str(value)


def quote_text(overrides: Sequence[str]) -> list[str]:
    """The overrides as Hydra reads them as they were meant.

    Text gets quotes where Hydra would convert it (2026_11_27 to 20261127, 3.10 to 3.1), or cannot read it, such as a
    path with umlauts, #, = or a quote; a comma still separates the values of a sweep. `null` stays where a setting may
    be null. Of a setting that is a list, a single value becomes a list: `schedule_at=[0.5]`. In folders of Hydra, ~ is
    the home directory.
    """
    return [_as_meant(text) for text in overrides]


def _as_meant(text: str) -> str:
    key, _, value = text.partition("=")
    kind = _kinds().get(key.lstrip("+"))
    if kind is None or not value:
        return text
    if key in _FOLDERS and value.startswith("~"):
        value = os.path.expanduser(value)  # noqa: PTH111 (a Path would drop ./ and //)
        text = f"{key}={value}"
    if kind.is_text:
        if not _is_readable(tree := _parsed(text), kind):
            text = f"{key}={_with_quotes(value, kind)}"
        else:
            text = _converted_quoted(text, tree, kind)
    return _in_brackets(text, _parsed(text)) if kind.is_list else text


def _parsed(text: str) -> Any:
    """The syntax tree of an override's value; None if Hydra cannot read it."""
    parser = OverrideParser(CommonTokenStream(lexer := OverrideLexer(InputStream(text))))
    unknown = _Counter()
    for one in (lexer, parser):
        one.removeErrorListeners()
        one.addErrorListener(unknown)
    tree = parser.override()  # type: ignore[no-untyped-call]
    return None if unknown.count else tree.value()


class _Counter(ErrorListener):  # type: ignore[misc]
    """Counts characters and syntax that Hydra does not know."""

    count = 0

    def syntaxError(self, *_: Any) -> None:  # noqa: N802
        self.count += 1


def _is_readable(tree: Any, kind: _Kind) -> bool:
    """Whether Hydra reads a value, and as what a text setting takes."""
    element = tree.element() if isinstance(tree, OverrideParser.ValueContext) else None  # type: ignore[no-untyped-call]
    if element is None:  # several values, or nothing
        return tree is not None
    if element.function() is not None:  # a folder `photos(1)` is none
        return element.function().ID().getText() in _FUNCTIONS
    return kind.is_list or element.primitive() is not None


def _with_quotes(value: str, kind: _Kind) -> str:
    """The values of an override that Hydra cannot read, each in quotes; unchanged if they have quotes or escapes."""
    inner = value[1:-1] if (is_list := kind.is_list and value[:1] + value[-1:] == "[]") else value
    texts = [text.strip() for text in inner.split(",")]
    if "\\" in value or any(text.startswith(("'", '"')) for text in texts) or (kind.is_list and "[" in inner):
        return value
    quoted = ",".join(QuotedString(text=text, quote=Quote.single).with_quotes() for text in texts)
    return f"[{quoted}]" if is_list else quoted


def _converted_quoted(text: str, tree: Any, kind: _Kind) -> str:
    """The override with quotes around what Hydra would convert."""
    types_ = _TYPED if kind.may_be_null else (*_TYPED, OverrideLexer.NULL)
    for primitive in reversed(list(_primitives(tree))):
        tokens = _tokens(primitive)
        if len(tokens) == 1 and tokens[0].type in types_:
            text = _around(text, tokens, "'", "'")
    return text


def _in_brackets(text: str, tree: Any) -> str:
    """The override with a list around each value that is none."""
    for primitive in reversed(list(_primitives(tree, in_lists=False))):
        tokens = _tokens(primitive)
        if tokens and tokens[0].type not in (OverrideLexer.NULL, OverrideLexer.INTERPOLATION):
            text = _around(text, tokens, "[", "]")
    return text


def _tokens(primitive: Any) -> list[Any]:
    return [child.symbol for child in primitive.getChildren() if child.symbol.type != OverrideLexer.WS]


def _around(text: str, tokens: Sequence[Any], left: str, right: str) -> str:
    start, stop = tokens[0].start, tokens[-1].stop + 1
    return f"{text[:start]}{left}{text[start:stop]}{right}{text[stop:]}"


def _primitives(tree: Any, *, in_lists: bool = True) -> Iterator[Any]:
    """The single values of an override: itself, those of a list, and of a sweep `A,B` or `choice(A,B)`."""
    if isinstance(tree, OverrideParser.ListContainerContext | OverrideParser.DictContainerContext) and not in_lists:
        return
    if isinstance(tree, OverrideParser.PrimitiveContext):
        yield tree
    elif isinstance(tree, OverrideParser.FunctionContext) and tree.children[0].getText() != "choice":
        return  # range(1,5) is computed
    else:
        for child in getattr(tree, "children", None) or ():
            yield from _primitives(child, in_lists=in_lists)


def keep_yaml_text(loaded: Any, node: yaml.Node | None, prefix: str = "") -> None:
    """Put the text that a YAML file holds back into its settings of type text, where YAML read something else.

    Args:
        loaded: the file's content, which is changed.
        node: the same content as `yaml.compose` gives it.
        prefix: precedes the names of the settings, such as `tracking.`.
    """
    if not isinstance(node, yaml.MappingNode) or not isinstance(loaded, dict):
        return
    for key_node, value_node in node.value:
        name = key_node.value
        if name not in loaded:
            continue
        kind = _kinds().get(f"{prefix}{name}")
        if kind is None:
            keep_yaml_text(loaded[name], value_node, f"{prefix}{name}.")
        elif not kind.is_text:
            continue
        elif isinstance(value_node, yaml.ScalarNode):
            if loaded[name] is not None or not kind.may_be_null:
                loaded[name] = value_node.value
        elif isinstance(value_node, yaml.SequenceNode) and isinstance(loaded[name], list):
            loaded[name] = [
                item.value if isinstance(item, yaml.ScalarNode) else value
                for item, value in zip(value_node.value, loaded[name], strict=True)
            ]


@functools.cache
def _kinds() -> dict[str, _Kind]:
    """The settings that are text, a list, or both, and Hydra's folders."""
    found = {key: _Kind(is_text=True, may_be_null=False, is_list=False) for key in _FOLDERS}
    for key, hint, _ in settings(TolariaConfig):
        may_be_null, is_list = isinstance(hint, types.UnionType), typing.get_origin(hint) is list
        inner = typing.get_args(hint)[0] if may_be_null or is_list else hint
        if inner is str or is_list:
            found[key] = _Kind(is_text=inner is str, may_be_null=may_be_null, is_list=is_list)
    return found
