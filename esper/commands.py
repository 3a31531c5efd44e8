"""Subcommands of `esper` as argparse has them. A module that adds some imports nothing else before they are called."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Parser", "add_command", "add_device", "add_group", "add_json", "named_path", "positive"]


class Parser(argparse.ArgumentParser):
    """A parser that takes options after, and between, the arguments that they go with; no path may be empty."""

    _is_inside = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As argparse."""
        super().__init__(*args, **kwargs)
        self.register("type", Path, lambda text: Path(named_path(text)))

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None, **kwargs: Any
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse, whose own parser of mixed arguments knows no subcommands."""
        if self._is_inside or self._subparsers is not None:
            return super().parse_known_args(args, namespace, **kwargs)
        self._is_inside = True  # it calls this method
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_inside = False


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], help: str
) -> argparse.ArgumentParser:
    """Add a subcommand, whose help text is also its description."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
    parser.set_defaults(run=run)
    return parser


def add_group(commands: Any, name: str, help: str) -> Any:
    """Add a subcommand that has subcommands itself; returns where to add these."""
    parser = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
    return parser.add_subparsers(metavar="COMMAND", required=True)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the option `--json`."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the option `--device`; `select_device` checks it."""
    parser.add_argument(
        "--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps (default: auto)"
    )


def named_path(text: str) -> str:
    """The type of a path that stays text; `Path` would take an empty one, as of an unset variable, for `.`."""
    if not text:
        raise argparse.ArgumentTypeError("'': names no file or folder; . is the current folder")
    return text


def positive(text: str) -> int:
    """The type of an option that is a whole number above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: allowed is at least 1")
    return value
