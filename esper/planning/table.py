"""A plan in the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from esper.planning.forecast import MAX_EXTRAPOLATION
from esper.planning.observations import Option, Plan
from esper.planning.words import (
    choice_label,
    compute_words,
    difference_words,
    epochs_words,
    figure_words,
    interval_words,
    percent_words,
)
from esper.tracking.formatting import clock, number

__all__ = ["printed"]

_NARROW_COLUMNS = 90


def printed(plan: Plan, *, columns: int, command: str = "") -> Iterator[RenderableType]:
    """Everything to print of a plan.

    Args:
        plan: the plan.
        columns: width of the terminal.
        command: the recommended command; "" is left out.
    """
    yield Text(plan.reason, style="bold")
    if plan.why:
        yield Text(plan.why)
    yield Text()
    yield _table(plan, is_narrow=columns < _NARROW_COLUMNS)
    yield Text()
    yield _facts(plan)
    for warning in plan.warnings:
        yield Text(f"  ! {warning}", style="yellow")
    if command:
        yield Text.assemble("\n", ("run", "dim"), f"   {command}")


def _table(plan: Plan, *, is_narrow: bool) -> Table:
    headline = plan.question.headline
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    table.add_column("option", no_wrap=True)
    for heading in (headline.label, "80 % interval", "P(best)"):
        table.add_column(heading, justify="right", no_wrap=True)
    if not is_narrow:
        for heading in ("regret", "loss", "epochs", "MACs", "time"):
            table.add_column(heading, justify="right", no_wrap=True)
    for option in plan.options:
        cells = [
            choice_label(option.choice, plan.question) + (" *" if option.extrapolation > MAX_EXTRAPOLATION else ""),
            figure_words(option.figure.expected, headline),
            interval_words(option.figure, headline),
            percent_words(option.p_best),
        ]
        table.add_row(*cells, *([] if is_narrow else _more(option, plan)), style=_style(option, plan))
    return table


def _style(option: Option, plan: Plan) -> str:
    return "bold" if option.choice == plan.recommended else ""


def _more(option: Option, plan: Plan) -> list[str]:
    return [
        difference_words(option.regret, plan.question.headline, unit=False),
        f"{option.loss.expected:.4f}",
        epochs_words(option.epochs),
        number(option.macs),
        clock(option.seconds),
    ]


def _facts(plan: Plan) -> Table:
    """The crossing, what growing carries over, and what the pilots cost."""
    facts = {}
    if (crossing := plan.crossing) is not None:
        ends = f"{compute_words(crossing.low)} to {compute_words(crossing.high)}"
        facts["final beats host from"] = f"{compute_words(crossing.median)}   80 % interval {ends}"
    if grown := [option for option in plan.options if option.worth is not None]:
        best = min(grown, key=lambda option: option.regret)
        ratio = plan.question.host.macs_per_epoch / plan.question.final.macs_per_epoch
        assert best.worth is not None
        facts["transfer"] = (
            f"{best.worth.median:.2f}   80 % interval {best.worth.low:.2f} to {best.worth.high:.2f}, if you "
            f"{choice_label(best.choice, plan.question)}; beats the final size above {ratio:.2f}"
        )
        shares = sum(option.p_best for option in grown)
        facts["growing is best"] = f"{percent_words(shares)}   at one share or another"
    if plan.question.pilot_macs:
        facts["pilots"] = compute_words(plan.question.pilot_macs)
    if any(option.extrapolation > MAX_EXTRAPOLATION for option in plan.options):
        facts["*"] = f"more than {MAX_EXTRAPOLATION:.0f} times as long as its pilots: a wide extrapolation"
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, text in facts.items():
        table.add_row(f" {name}", text)
    return table
