"""The end of a run's output: the final table of a finished run, or how to resume an unfinished one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from esper.contracts.metrics import headline_of
from esper.tracking.formatting import change, clock, loss, metric, number, percent, signed
from esper.tracking.history import GrownModule, History

__all__ = ["file_list", "final_table", "growth_table", "run_end"]

_NARROW_COLUMNS = 90
_WIDE_COLUMNS = ["module", "site", "parameters", "MACs"]


def run_end(history: History, *, columns: int) -> Iterator[RenderableType]:
    """Everything to print at the end of a run that has started.

    Args:
        history: all events of the run.
        columns: width of the terminal.
    """
    ended, started = history.ended, history.started
    assert started is not None
    yield Text()
    if ended is not None and ended["status"] == "finished":
        name = f"{started['experiment_name']}/{started['run_name']}"
        summary = f"finished: {history.summary}."
        space = " " if len(f"{name} {summary}") <= columns else "\n"
        yield Text.assemble((name, "bold"), space, f"{summary}\n")
        yield final_table(ended["result"])
        if history.modules:
            yield Text()
            yield growth_table(history.modules, is_narrow=columns < _NARROW_COLUMNS)
    else:
        yield _unfinished(history)


def final_table(result: Mapping[str, Any]) -> Table:
    """The result of a finished run, one row a metric; the keys are those of `contracts.events.RunEnded.result`."""
    train_macs, growth_macs = result["train_macs"], result["growth_macs"]
    total_macs = train_macs + growth_macs
    shares = f"   training {percent(train_macs / total_macs)}, growth {percent(growth_macs / total_macs)}"
    info = headline_of(result)
    test, val = (metric(result[f"{split}_{info.name}"], info) for split in ("test", "val"))
    rows = {
        f"test {info.label}": f"[bold]{test}[/]   loss {loss(result['test_loss'])}",
        f"val {info.label}": f"{val}   loss {loss(result['val_loss'])}",
        "parameters": _before_after(result, "num_parameters"),
        "MACs per example": _before_after(result, "num_macs"),
        "MACs spent": f"{number(total_macs)}{shares if growth_macs else ''}",
        "time": clock(result["seconds"]),
    }
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, text in rows.items():
        table.add_row(f" {name}", text)
    return table


def _before_after(result: Mapping[str, Any], key: str) -> str:
    before, after = result[f"{key}_before"], result[key]
    if before == after:
        return f"{number(after)}   unchanged"
    return f"{number(before)} → {number(after)}   {change(before, after)}"


def growth_table(modules: list[GrownModule], *, is_narrow: bool) -> Table:
    """One row a module: added cost, judged gain (if any was judged), verdict; `is_narrow` uses two lines a row."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0) if is_narrow else (0, 1), show_edge=False)
    columns = ["module", "added"] if is_narrow else list(_WIDE_COLUMNS)
    any_judged = any(module.judgement for module in modules)
    if any_judged:
        columns += ["gain"] if is_narrow else ["gain", "lower bound"]
    table.add_column("epoch", justify="right")
    for heading in columns:
        is_name = heading in ("module", "site")
        # The ends of long names are what tells sites apart.
        table.add_column(
            heading,
            justify="left" if is_name else "right",
            no_wrap=is_narrow and not is_name,
            overflow="fold" if is_name else "ellipsis",
        )
    table.add_column("verdict")
    for module in modules:
        judged = module.judgement or {}
        cells = [module.blueprint_id, module.site, signed(module.added_parameters), signed(module.added_macs)]
        if is_narrow:
            cells = [f"{cells[0]}\n{cells[1]}", f"{cells[2]}\n{cells[3]} MACs"]
        if any_judged:
            gain, bound = loss(judged.get("gain")), loss(judged.get("lower_bound"))
            cells += [gain, bound] if not is_narrow else [f"{gain}\n≥ {bound}" if judged else gain]
        table.add_row(
            str(module.epoch), *cells, Text(module.verdict, style="bold green" if module.is_kept else "yellow")
        )
    return table


def file_list(files: Mapping[str, str]) -> Iterator[Text]:
    """A line for each file or command (by name); print without wrapping, so that they can be copied."""
    width = max(map(len, files), default=0)
    for name, where in files.items():
        yield Text.assemble((f" {name:<{width}}", "dim"), f"  {where}")


def _unfinished(history: History) -> Text:
    ended, started = history.ended, history.started
    assert started is not None
    # The error itself is printed where it is caught.
    status = ended["status"] if ended is not None else "stopped without saving"
    reason = f" ({ended['reason']})" if ended is not None and status == "interrupted" and ended["reason"] else ""
    where = f"at step {history.step:,} of {started['total_steps']:,}"
    return Text.assemble((f"{status}{reason}", "bold yellow"), f" {where}; {_how_to_resume(history)}")


def _how_to_resume(history: History) -> str:
    assert history.started is not None
    if history.resume_step is None:
        return "no checkpoint yet, the same command starts over"
    if not history.started["config"]["checkpoint"]["auto_resume"]:
        return f"add checkpoint.auto_resume=true to resume from step {history.resume_step:,}"
    return f"the same command resumes from step {history.resume_step:,}"
