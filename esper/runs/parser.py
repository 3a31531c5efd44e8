"""`esper runs` for argparse."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esper.commands import add_command, add_group, add_json

__all__ = ["add_runs", "with_default"]

_SORT_KEYS = ("experiment", "name", "status", "figure", "macs", "time", "age")
_LIST, _REMOVE = "list", "rm"


def add_runs(commands: Any) -> None:
    """Add the subcommand and its own subcommands."""
    group = add_group(commands, "runs", "list runs, or remove some")
    listing = add_command(
        group, _LIST, _listing, "list runs with status, leading metric, cost and age; may be left out: esper runs DIR"
    )
    listing.add_argument(
        "folder", nargs="?", type=Path, default=Path("outputs"), metavar="DIR", help="default: outputs"
    )
    listing.add_argument(
        "--sort", choices=_SORT_KEYS, default="age", help="best, cheapest, newest first (default: age)"
    )
    listing.add_argument("--reverse", action="store_true", help="the other way round")
    listing.add_argument(
        "--filter", action="append", default=[], metavar="KEY=PATTERN",
        help="only runs of this experiment, name, status, metric or setting, such as status=finished or "
        "model.name='resnet*'; TEXT alone: a part of the name; repeatable",
    )  # fmt: skip
    listing.add_argument("--watch", action="store_true", help="refresh until no run has run for a minute")
    add_json(listing)
    remove = add_command(group, _REMOVE, _remove, "remove the folders of runs, after a question")
    remove.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, or EXPERIMENT/RUN in outputs")
    remove.add_argument("--yes", action="store_true", help="do not ask")


def with_default(arguments: Sequence[str]) -> list[str]:
    """The arguments of `esper`, with `list` where it was left out: `esper runs --sort figure`."""
    command, *rest = arguments or [""]
    is_left_out = command == "runs" and (not rest or rest[0] not in (_LIST, _REMOVE, "-h", "--help"))
    return ["runs", _LIST, *rest] if is_left_out else list(arguments)


def _listing(options: argparse.Namespace) -> int:
    from esper.runs import command

    return command.listing(
        options.folder,
        sort=options.sort,
        is_reversed=options.reverse,
        filters=options.filter,
        as_json=options.json,
        watch=options.watch,
    )


def _remove(options: argparse.Namespace) -> int:
    from esper.runs import command

    return command.remove(options.runs, is_sure=options.yes)
