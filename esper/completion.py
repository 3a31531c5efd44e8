"""`esper completion SHELL`: the script that makes a shell complete the commands and options of `esper`."""

from __future__ import annotations

import argparse
import functools
import sys
from typing import Any

from esper.commands import add_command

__all__ = ["add_completion"]

_SHELLS = ("bash", "zsh", "tcsh")


def add_completion(commands: Any, parser: argparse.ArgumentParser) -> None:
    """Add the subcommand; `parser` is that of `esper`."""
    completion = add_command(
        commands,
        "completion",
        functools.partial(_completion, parser=parser),
        'print a script for tab completion: eval "$(esper completion bash)"',
    )
    completion.add_argument("shell", choices=_SHELLS, help="the shell")


def _completion(options: argparse.Namespace, *, parser: argparse.ArgumentParser) -> int:
    import shtab

    _complete_files(parser, shtab.FILE)
    sys.stdout.write(shtab.complete(parser, options.shell))
    return 0


def _complete_files(parser: argparse.ArgumentParser, files: Any) -> None:
    """Let the values of which nothing is known be completed as files, which most are."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _complete_files(inner, files)
        elif action.choices is None and action.nargs != 0:
            action.complete = files  # type: ignore[attr-defined]
