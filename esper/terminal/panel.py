"""The live panel: progress, latest metrics, and the state of each seed."""

from __future__ import annotations

import logging
import time
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from esper.terminal.lines import Line
from esper.tracking.formatting import clock, loss, memory, metric, number
from esper.tracking.history import GrownModule, History

__all__ = ["Panel"]

_MAX_SEEDS = 8
_STATE_STYLES = {"fossilized": "bold green", "culled": "yellow", "holding": "cyan"}


class Panel:
    """Latest values of a run. One thread stores them (`update`), another draws them (`render`)."""

    def __init__(self, history: History) -> None:
        self.history = history
        self._latest: dict[str, Any] = {}
        self._began = (0, time.monotonic())  # step and time at which this process started the run
        self._seen = self._began  # step and time of the latest event

    def update(self, event: dict[str, Any]) -> None:
        """Store the values of a journal event."""
        now = time.monotonic()
        match event["kind"]:
            case "run_started":
                self._began = (event["step"], now)
            case "step":
                self._latest |= {"train_loss": event["loss"], "train_metrics": event["metrics"]}
                self._latest |= {key: event[key] for key in ("learning_rate", "memory_bytes", "epoch")}
                self._latest |= {key: event.get(key) for key in ("images_per_s", "tokens_per_s")}
            case "validation":
                self._latest |= {key: event[key] for key in ("val_loss", "val_metrics")}
            case "epoch":
                self._latest |= event
        self._seen = (event["step"], now)

    def progress_line(self) -> Line:
        """Progress in one line, for output without a live panel."""
        latest = self._latest
        text = (
            f"of {self._total('total_steps'):,}   "
            f"train loss {loss(latest.get('train_loss'))}, {self._headline('train')}   "
            f"{self._speed()}   {clock(self._seconds_left())} left"
        )
        return Line(logging.INFO, f"step {self.history.step:,}", text, is_progress=True)

    def render(self) -> RenderableType:
        """Draw the panel."""
        latest, started = self._latest, self.history.started or {}
        head = Table.grid(expand=True, padding=(0, 1))
        head.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        head.add_column(justify="right", no_wrap=True)
        name = Text.assemble((started.get("experiment_name", ""), "bold"), (f"/{started.get('run_name', '')}", "dim"))
        head.add_row(name, Text(f"{started.get('device', '')}  {memory(latest.get('memory_bytes'))}", style="dim"))
        return Group(Text(), head, self._progress(), self._metrics(), *self._seeds())

    def _progress(self) -> Table:
        step, total = self.history.step, self._total("total_steps")
        steps_per_epoch = self._total("steps_per_epoch") or max(1, total // max(1, self._total("total_epochs")))
        epoch = min(step // steps_per_epoch + 1, self._total("total_epochs"))
        row = Table.grid(expand=True, padding=(0, 1))
        row.add_column(ratio=1)
        row.add_column(justify="right", no_wrap=True)
        text = (
            f"epoch {epoch}/{self._total('total_epochs')}  step {step:,}/{total:,}  {clock(self._seconds_left())} left"
        )
        row.add_row(ProgressBar(total=max(total, 1), completed=step, complete_style="cyan"), text)
        return row

    def _speed(self) -> str:
        tokens, examples = (self._latest.get(f"{what}_per_s") for what in ("tokens", "images"))
        if tokens is not None:
            return f"{number(tokens)} tokens/s"
        return f"{number(examples)} {(self.history.started or {}).get('noun', 'images')}/s"

    def _metrics(self) -> Table:
        latest = self._latest
        learning_rate = latest.get("learning_rate")
        grid = Table.grid(padding=(0, 2))
        for _ in range(4):
            grid.add_column(no_wrap=True, overflow="ellipsis")
        grid.add_row(
            Text("train", style="dim"),
            f"loss {loss(latest.get('train_loss'))}",
            self._headline("train", width=7),
            self._speed(),
        )
        grid.add_row(
            Text("val", style="dim"),
            f"loss {loss(latest.get('val_loss'))}",
            self._headline("val", width=7),
            "" if learning_rate is None else f"lr {learning_rate:.2g}",
        )
        return grid

    def _headline(self, split: str, *, width: int = 0) -> str:
        info = self.history.headline
        value = self._latest.get(f"{split}_metrics", {}).get(info.name)
        return f"{info.label} {metric(value, info):>{width}}"

    def _seeds(self) -> list[RenderableType]:
        modules = self.history.modules
        if not modules:
            return []
        live_last = sorted(modules, key=lambda module: module.is_live)  # stable: otherwise by graft_id
        grid = Table.grid(padding=(0, 2))
        for _ in range(4):
            grid.add_column(no_wrap=True, overflow="ellipsis")
        for index, module in enumerate(live_last[-_MAX_SEEDS:]):
            grid.add_row(Text("" if index else "seeds", style="dim"), *_seed(module))
        return [grid]

    def _total(self, key: str) -> int:
        return int((self.history.started or {}).get(key, 0))

    def _seconds_left(self) -> float | None:
        (first, began_s), (step, seen_s) = self._began, self._seen
        if step <= first:
            return None
        left_s = (seen_s - began_s) / (step - first) * (self._total("total_steps") - step)
        return max(0.0, left_s - (time.monotonic() - seen_s))


def _seed(module: GrownModule) -> tuple[Text, ...]:
    since = "" if module.state_epoch is None else f"epoch {module.state_epoch}"
    return (
        Text(module.site),
        Text(module.blueprint_id),
        Text.assemble((module.state, _STATE_STYLES.get(module.state, "")), "  ", (since, "dim")),
    )
