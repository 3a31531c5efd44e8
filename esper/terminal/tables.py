"""How a run ended: the table of a finished one, and how to go on with one that is not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from esper.tracking.figures import change, clock, loss, number, percent, signed
from esper.tracking.history import Fate, History

__all__ = ["ending", "growth_table", "places", "result_table"]

_NARROW_COLUMNS = 90
_WIDE_COLUMNS = ["module", "site", "parameters", "MACs", "gain", "lower bound"]


def ending(history: History, *, columns: int) -> Iterator[RenderableType]:
    """Everything to print at the end of a run that has started.

    Args:
        history: all of the run's events.
        columns: width of the terminal.
    """
    ended, started = history.ended, history.started
    assert started is not None
    yield Text()
    if ended is not None and ended["status"] == "finished":
        name = f"{started['experiment_name']}/{started['run_name']}"
        yield Text.assemble((name, "bold"), f" finished: {history.summary}.\n")
        yield result_table(ended["result"])
        if history.fates:
            yield Text()
            yield growth_table(history.fates, is_narrow=columns < _NARROW_COLUMNS)
    else:
        yield _unfinished(history)


def places(files: Mapping[str, str]) -> Iterator[Text]:
    """Where things are, a line each; to be printed without wrapping: paths and commands get copied."""
    width = max(map(len, files), default=0)
    for name, where in files.items():
        yield Text.assemble((f" {name:<{width}}", "dim"), f"  {where}")


def result_table(result: Mapping[str, Any]) -> Table:
    """The figures of a finished run; see `contracts.events.RunEnded` for its keys."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    train_macs, growth_macs = result["train_macs"], result["growth_macs"]
    total_macs = train_macs + growth_macs
    table.add_row(" test accuracy", f"[bold]{percent(result['test_accuracy'])}[/]   loss {loss(result['test_loss'])}")
    table.add_row(" val accuracy", f"{percent(result['val_accuracy'])}   loss {loss(result['val_loss'])}")
    for name, key in (("parameters", "num_parameters"), ("MACs an image", "num_macs")):
        before, after = result[f"{key}_before"], result[key]
        grown = f"{number(before)} → {number(after)}   {change(before, after)}"
        table.add_row(f" {name}", grown if before != after else f"{number(after)}   unchanged")
    shares = f"   training {percent(train_macs / total_macs)}, growth {percent(growth_macs / total_macs)}"
    table.add_row(" MACs spent", f"{number(total_macs)}{shares if growth_macs else ''}")
    table.add_row(" time", clock(result["seconds"]))
    return table


def growth_table(fates: list[Fate], *, is_narrow: bool) -> Table:
    """One row a module: what it added, what the judge measured, what became of it; narrow: two lines a row."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0) if is_narrow else (0, 1), show_edge=False)
    columns = ["module", "added", "gain"] if is_narrow else _WIDE_COLUMNS
    table.add_column("epoch", justify="right")
    for heading in columns:
        table.add_column(heading, justify="left" if heading in ("module", "site") else "right", no_wrap=is_narrow)
    table.add_column("verdict")
    for fate in fates:
        judged = fate.judgement or {}
        cells = [fate.blueprint_id, fate.site, signed(fate.added_parameters), signed(fate.added_macs)]
        cells += [loss(judged.get("gain")), loss(judged.get("lower_bound"))]
        if is_narrow:
            module, site, parameters, macs, gain, bound = cells
            cells = [f"{module}\n{site}", f"{parameters}\n{macs} MACs", f"{gain}\n≥ {bound}" if judged else gain]
        table.add_row(str(fate.epoch), *cells, Text(fate.verdict, style="bold green" if fate.is_kept else "yellow"))
    return table


def _unfinished(history: History) -> Text:
    ended, started = history.ended, history.started
    assert started is not None
    # The error itself is told by whoever catches it.
    status = ended["status"] if ended is not None else "stopped without saving"
    reason = f" ({ended['reason']})" if ended is not None and status == "interrupted" and ended["reason"] else ""
    where = f"at step {history.step:,} of {started['total_steps']:,}"
    return Text.assemble((f"{status}{reason}", "bold yellow"), f" {where}; {_how_to_go_on(history)}")


def _how_to_go_on(history: History) -> str:
    assert history.started is not None
    if history.resume_step is None:
        return "there is no checkpoint yet: the same command again starts anew"
    if not history.started["config"]["checkpoint"]["auto_resume"]:
        return f"add checkpoint.auto_resume=true to go on from step {history.resume_step:,}"
    return f"the same command again goes on from step {history.resume_step:,}"
