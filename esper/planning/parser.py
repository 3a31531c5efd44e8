"""`esper plan` for argparse."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from esper.commands import add_command, add_json
from esper.planning.budget import MOST_PILOTS

__all__ = ["add_plan"]


def add_plan(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands, "plan", _plan, "say from short pilots whether to train longer, start larger, or grow"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="OVERRIDE",
        help="as for esper-train, of the network that may grow; dry_run=true only lists the pilots",
    )  # fmt: skip
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument(
        "--compute", type=_positive, metavar="MACS",
        help="multiply-accumulates to spend, forward and backward, pilots included, as optimization.max_macs "
        "(half of the FLOPs); without a budget: that of the settings",
    )  # fmt: skip
    budget.add_argument(
        "--epochs", type=_positive, metavar="N", help="the same, as so many epochs of the final network"
    )
    budget.add_argument("--hours", type=_positive, metavar="H", help="hours to train, pilots included")
    parser.add_argument(
        "--pilot-share", type=_share, default=0.15, metavar="X", help="share of it for pilots (default: 0.15)"
    )
    parser.add_argument(
        "--sizes", type=_sizes, metavar="X,Y",
        help="sizes between host and final network, as fractions of what grows, or none (default: 0.5)",
    )  # fmt: skip
    parser.add_argument("--experiment", metavar="NAME", help="as experiment_name: the pilots lie in outputs/NAME")
    parser.add_argument(
        "--policy", type=Path, metavar="FILE", help="learned from earlier plans by esper simic; decides whether to grow"
    )
    parser.add_argument(
        "--check", type=Path, metavar="DIR", help="compare the plan in this folder with what has been trained since"
    )
    add_json(parser)


def _plan(options: argparse.Namespace) -> int:
    from esper.planning import command

    return command.main(options)


def _number(text: str) -> float:
    """A number; NaN, which is in no range, if it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _positive(text: str) -> float:
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: allowed is a number above 0")
    return value


def _share(text: str) -> float:
    value = _number(text)
    if not 0 < value <= MOST_PILOTS:
        raise argparse.ArgumentTypeError(f"{text}: allowed is above 0, and at most {MOST_PILOTS:g}")
    return value


def _sizes(text: str) -> list[float]:
    values = [] if text == "none" else [_number(part) for part in text.split(",")]
    if not all(0 < value < 1 for value in values):
        raise argparse.ArgumentTypeError(
            f"{text}: allowed are fractions of what grows between 0 and 1, such as 0.25,0.5, or none"
        )
    return values
