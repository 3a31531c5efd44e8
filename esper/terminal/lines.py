"""The lines printed for journal events; they stay in the scrollback."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from esper.contracts.events import MISSED
from esper.contracts.metrics import MetricInfo
from esper.tracking.formatting import change, loss, metric, number, signed

__all__ = ["Line", "describe"]

_NARROW_COLUMNS = 110
"""Terminals narrower than this get the short text of a line."""

_LABEL_WIDTH = 10


@dataclass(frozen=True, slots=True)
class Line:
    """Text under a label; `short`, if there is one, is the text for a narrow terminal."""

    level: int
    label: str
    text: str
    style: str = ""
    short: str = ""

    def plain(self) -> Text:
        """One line of any length."""
        return Text.assemble((f"{self.label:<{_LABEL_WIDTH}}", self.style), f"  {self.text}")

    def wrapped(self, columns: int) -> RenderableType:
        """Text wrapped beside its label; one line of any length if it may hold a path, which must not be cut."""
        line = self if columns >= _NARROW_COLUMNS or not self.short else dataclasses.replace(self, text=self.short)
        if len(line.plain()) <= columns or "/" in line.text:
            return line.plain()
        grid = Table.grid(padding=(0, 2))
        grid.add_column(width=_LABEL_WIDTH, no_wrap=True)
        grid.add_column(overflow="fold")
        grid.add_row(Text(self.label, style=self.style), Text(self.text))
        return grid


def describe(event: dict[str, Any], headline: MetricInfo, *, is_best: bool = False) -> Iterator[Line]:
    """The lines for an event of the journal, of a run that this metric leads; `is_best`: the best epoch so far."""
    match event["kind"]:
        case "run_started":
            yield from _started(event)
        case "epoch":
            best = "   best" if is_best else ""
            short = f"{_epoch(event, headline, is_short=True)}{best}"
            yield Line(logging.INFO, f"epoch {event['epoch']:>3}", f"{_epoch(event, headline)}{best}", short=short)
        case "surgery" if event["committed"] and event["action"] == "germinate":
            yield _growth(event, "germinated", _germinated(event), style="green")
        case "surgery" if not event["committed"]:
            yield Line(logging.WARNING, "failed", f"{event['action']} {_module(event)}: {event['error']}", "red")
        case "judgement":
            yield _growth(event, "judged", _judged(event), style="cyan")
        case "state" if event["new"] == "fossilized":
            yield _growth(event, "kept", f"{_module(event)} is part of the network now", style="bold green")
        case "state" if event["new"] == "culled":
            yield _growth(event, "culled", f"{_module(event)}: {event['reason']}", style="yellow")
        case "state":
            yield Line(logging.DEBUG, event["new"], f"{event['site']}: {event['reason']}", "dim")
        case "decision":
            decision, outcome = event["decision"], event["outcome"]
            if outcome.startswith(MISSED):
                text = f"{outcome.removeprefix(MISSED)} (step {event['step']:,})"
                yield Line(logging.WARNING, "missed", text, "bold yellow")
            elif decision["should_adapt"] and not event["applied"]:
                yield _growth(event, "refused", outcome, style="yellow")
            else:
                yield Line(logging.DEBUG, "decided", f"{decision['reasoning']}: {outcome}", "dim")
        case "signals":
            text = f"{len(event['signals'])} sites in {event['cost_s']:.1f} s"
            yield Line(logging.DEBUG, "measured", text, "dim")
        case "checkpoint":
            yield Line(logging.DEBUG, "saved", event["path"], "dim")
        case "growth_undone":
            yield Line(logging.WARNING, "undone", event["message"], "bold yellow")
        case "notice":
            level = logging.getLevelNamesMapping()[event["level"]]
            label = "note" if level < logging.WARNING else event["level"].lower()
            yield Line(level, label, event["message"], "bold yellow" if level >= logging.WARNING else "")


def _growth(event: dict[str, Any], label: str, text: str, *, style: str) -> Line:
    return Line(logging.INFO, label, f"{text} (step {event['step']:,})", style)


def _started(event: dict[str, Any]) -> Iterator[Line]:
    config = event["config"]
    host = (
        f"{config['model']['name']} on {config['dataset']['name']}: {number(event['num_parameters'])} parameters, "
        f"{number(event['num_macs'])} MACs per example"
    )
    growth = config["morphogenetic"]
    may_grow = growth["enable_tamiyo"] and event["num_sites"]
    plan = f"{event['total_epochs']} epochs, {event['total_steps']:,} steps on {event['device']}"
    optimization = config["optimization"]
    asked = optimization["max_epochs"]
    by_compute = may_grow and growth["policy"] == "stack" and growth.get("schedule_by") == "compute"
    if by_compute and optimization.get("max_macs") is None and event["total_epochs"] != asked:
        plan += f": as much compute as {asked} epoch{'' if asked == 1 else 's'} of the network it ends with"
    sites = f"{event['num_sites']} sites, policy {growth['policy']}" if may_grow else "off"
    yield Line(logging.INFO, "run", f"{event['experiment_name']}/{event['run_name']}", "bold")
    yield Line(logging.INFO, "host", host, "bold")
    yield Line(logging.INFO, "training", plan, "bold")
    yield Line(logging.INFO, "growth", sites, "bold")
    if event["resumed_from"] is not None:
        text = f"at step {event['step']:,}, from {event['resumed_from']}"
        yield Line(logging.INFO, "resumed", text, "bold cyan")


def _epoch(event: dict[str, Any], headline: MetricInfo, *, is_short: bool = False) -> str:
    train, val = (metric(event[name].get(headline.name), headline) for name in ("train_metrics", "val_metrics"))
    if is_short:
        train_loss, val_loss = loss(event["train_loss"]), loss(event["val_loss"])
        return f"train {train_loss}, {train:>7}   val {val_loss}, {val:>7}   {event['epoch_time']:.1f} s"
    return (
        f"train loss {loss(event['train_loss'])}, {headline.label} {train}   "
        f"val loss {loss(event['val_loss'])}, {headline.label} {val}   "
        f"lr {event['learning_rate']:.2g}   {event['epoch_time']:.1f} s"
    )


def _module(event: dict[str, Any]) -> str:
    return f"{event['blueprint_id']} at {event['site']}"


def _germinated(event: dict[str, Any]) -> str:
    costs = []
    for key, unit in (("num_parameters", "parameters"), ("num_macs", "MACs")):
        before, after = event[f"{key}_before"], event[f"{key}_after"]
        costs.append(f"{signed(after - before)} {unit} ({change(before, after)})")
    return f"{_module(event)}: {', '.join(costs)}"


def _judged(event: dict[str, Any]) -> str:
    return (
        f"{_module(event)}: gain {loss(event['gain'])}, lower bound {loss(event['lower_bound'])}, "
        f"needed {loss(event['threshold'])}"
    )
