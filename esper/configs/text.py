"""Settings of type text keep the text that was typed, where Hydra and YAML would read a number, true or null."""

from __future__ import annotations

import functools
import shlex
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from antlr4 import CommonTokenStream, InputStream
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.grammar.gen.OverrideLexer import OverrideLexer
from hydra.grammar.gen.OverrideParser import OverrideParser

from esper.configs.schema import settings
from esper.configs.tolaria import TolariaConfig

__all__ = ["keep_yaml_text", "override", "quote_text"]

_TYPED = (OverrideLexer.INT, OverrideLexer.FLOAT, OverrideLexer.BOOL)


def override(key: str, value: str) -> str:
    """`KEY=VALUE` as Hydra reads any text, quoted for a shell."""
    return shlex.quote(f"{key}={QuotedString(text=value, quote=Quote.single).with_quotes()}")


def quote_text(overrides: Sequence[str]) -> list[str]:
    """The overrides, with quotes where Hydra would convert what was typed for a text: `description='3.10'`.

    Hydra reads 2026_11_27 as 20261127, 3.10 as 3.1 and 1e5 as 100000.0. `null` stays where a setting may be null.
    """
    return [_quoted(text) for text in overrides]


def _quoted(text: str) -> str:
    may_be_null = _text_settings().get(text.partition("=")[0].lstrip("+"))
    if may_be_null is None:
        return text
    parser = OverrideParser(CommonTokenStream(lexer := OverrideLexer(InputStream(text))))
    lexer.removeErrorListeners()
    parser.removeErrorListeners()
    tree = parser.override()  # type: ignore[no-untyped-call]
    if parser.getNumberOfSyntaxErrors() or tree.value() is None:
        return text  # Hydra refuses it
    types_ = _TYPED if may_be_null else (*_TYPED, OverrideLexer.NULL)
    for primitive in reversed(list(_primitives(tree.value()))):
        tokens = [child.symbol for child in primitive.getChildren() if child.symbol.type != OverrideLexer.WS]
        if len(tokens) == 1 and tokens[0].type in types_:
            start, stop = tokens[0].start, tokens[0].stop + 1
            text = f"{text[:start]}'{text[start:stop]}'{text[stop:]}"
    return text


def _primitives(tree: Any) -> Iterator[Any]:
    """The single values of an override: itself, those of a list, and of a sweep `A,B` or `choice(A,B)`."""
    if isinstance(tree, OverrideParser.PrimitiveContext):
        yield tree
    elif isinstance(tree, OverrideParser.FunctionContext) and tree.children[0].getText() != "choice":
        return  # range(1,5) is computed
    else:
        for child in getattr(tree, "children", None) or ():
            yield from _primitives(child)


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
        may_be_null = _text_settings().get(f"{prefix}{name}")
        if may_be_null is None:
            keep_yaml_text(loaded[name], value_node, f"{prefix}{name}.")
        elif isinstance(value_node, yaml.ScalarNode):
            if loaded[name] is not None or not may_be_null:
                loaded[name] = value_node.value
        elif isinstance(value_node, yaml.SequenceNode) and isinstance(loaded[name], list):
            loaded[name] = [
                item.value if isinstance(item, yaml.ScalarNode) else value
                for item, value in zip(value_node.value, loaded[name], strict=True)
            ]


@functools.cache
def _text_settings() -> dict[str, bool]:
    """Whether it may be null, for each setting that is a text or a list of texts."""
    found = {}
    for key, hint, _ in settings(TolariaConfig):
        may_be_null = isinstance(hint, types.UnionType)
        inner = typing.get_args(hint)[0] if may_be_null or typing.get_origin(hint) is list else hint
        if inner is str:
            found[key] = may_be_null
    return found
