"""The live panel: progress, latest metrics, and the state of each seed."""

from __future__ import annotations

import logging
import time
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from esper.contracts.progress import Progress
from esper.terminal.lines import Line
from esper.terminal.pace import Pace
from esper.tracking.formatting import clock, loss, memory, metric, number
from esper.tracking.history import GrownModule, History

__all__ = ["Panel"]

_MAX_SEEDS = 8
_STATE_STYLES = {"kept": "bold green", "culled": "yellow", "holding": "cyan"}


class Panel:
    """Latest values of a run. One thread stores them (`update`, `progress`), another draws them (`render`).

    Attributes:
        history: of the run.
        doing: what the training does now.
        pace: steps done and to do, and how long they take.
    """

    def __init__(self, history: History, *, is_ascii: bool = False) -> None:
        self.history = history
        self.doing = "starting"
        self.pace = Pace()
        self._latest: dict[str, Any] = {}
        self._has_progress = False  # then its loss, of the last second, is newer than those of `step` events
        self._spinner = Spinner("line" if is_ascii else "dots", style="cyan")

    def update(self, event: dict[str, Any]) -> None:
        """Store the values of a journal event that happens now."""
        self.store(event)
        match event["kind"]:
            case "run_started":
                self.pace.start(event["step"], total=event["total_steps"])
            case "surgery" if event["committed"]:
                self.pace.change(event["step"])
        self.pace.reach(event["step"])

    def replayed(self) -> None:
        """Go on from the last of the events that were stored."""
        if self.history.started is not None:
            self.pace.start(self.history.step, total=self.history.started["total_steps"])

    def store(self, event: dict[str, Any]) -> None:
        """Store the values of a journal event."""
        match event["kind"]:
            case "step":
                if not self._has_progress:
                    self._latest |= {"train_loss": event["loss"], "train_metrics": event["metrics"]}
                self._latest |= {key: event[key] for key in ("learning_rate", "memory_bytes", "epoch")}
                self._latest |= {key: event.get(key) for key in ("images_per_s", "tokens_per_s")}
            case "validation":
                self._latest |= {key: event[key] for key in ("val_loss", "val_metrics")}
            case "epoch":
                self._latest |= event

    @property
    def has_loss(self) -> bool:
        """Whether a training loss is known."""
        return "train_loss" in self._latest

    def progress(self, progress: Progress) -> None:
        """Store what the training does, its step and loss."""
        self.doing = progress.doing
        if progress.step is not None:
            self.pace.reach(progress.step, total=progress.total_steps)
        if progress.loss is not None and progress.doing == "training":
            self._has_progress = True
            self._latest |= {"train_loss": progress.loss, "train_metrics": progress.metrics}

    def progress_line(self) -> Line:
        """Progress in one line, for output without a live panel."""
        latest = self._latest
        text = (
            f"of {self.pace.total:,}   "
            f"train loss {loss(latest.get('train_loss'))}, {self.headline('train')}   "
            f"{self.speed()}   {clock(self.pace.seconds_left())} left"
        )
        return Line(logging.INFO, f"step {self.pace.step:,}", text)

    def render(self) -> RenderableType:
        """Draw the panel."""
        if (started := self.history.started) is None:
            return self._doing()
        latest = self._latest
        head = Table.grid(expand=True, padding=(0, 1))
        head.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        head.add_column(justify="right", no_wrap=True)
        name = Text.assemble((started["experiment_name"], "bold"), (f"/{started['run_name']}", "dim"))
        head.add_row(name, Text(f"{started['device']}  {memory(latest.get('memory_bytes'))}", style="dim"))
        return Group(Text(), head, self._bar(), self._metrics(), *self._seeds())

    def _doing(self) -> RenderableType:
        text = Text.assemble(self.doing, (f"  {clock(self.pace.elapsed_s())}", "dim"))
        grid = Table.grid(padding=(0, 1))
        grid.add_row(self._spinner.render(time.monotonic()), text)
        return grid

    def _bar(self) -> RenderableType:
        row = Table.grid(expand=True, padding=(0, 1))
        row.add_column(no_wrap=True)
        row.add_column(ratio=1, min_width=8)
        row.add_column(justify="right", no_wrap=True)
        pace, left = self.pace, clock(self.pace.seconds_left())
        text = f"epoch {self.epochs}  step {pace.step:,}/{pace.total:,}  {left} left"
        bar = ProgressBar(total=max(pace.total, 1), completed=pace.fractional_step(), complete_style="cyan")
        row.add_row(self._doing(), bar, text)
        return row

    @property
    def epochs(self) -> str:
        """Number of the current epoch, and of all: `3/10`."""
        started = self.history.started or {}
        total = int(started.get("total_epochs", 0))
        steps_per_epoch = started.get("steps_per_epoch") or max(1, self.pace.total // max(1, total))
        return f"{min(self.pace.step // steps_per_epoch + 1, total)}/{total}"

    def speed(self) -> str:
        """Examples or tokens a second."""
        tokens, examples = (self._latest.get(f"{what}_per_s") for what in ("tokens", "images"))
        if tokens is not None:
            return f"{number(tokens)} tokens/s"
        started = self.history.started or {}
        if examples is None and started and self.pace.step_s:  # before the first `step` event
            examples = started["config"]["dataset"]["batch_size"] / self.pace.step_s
        return f"{number(examples)} {started.get('noun', 'images')}/s"

    def headline(self, split: str, *, width: int = 0) -> str:
        """The metric that leads, latest value of a split: train or val."""
        return self._figure(self._latest.get(f"{split}_metrics") or {}, width=width)

    def _figure(self, metrics: dict[str, float], *, width: int) -> str:
        info = self.history.headline
        return f"{info.label} {metric(metrics.get(info.name), info):>{width}}"

    def rows(self) -> list[tuple[str, float | None, str, str]]:
        """Training, validation and best epoch: name, loss, the metric that leads, and something more."""
        latest, best = self._latest, self.history.best
        learning_rate = latest.get("learning_rate")
        rows = [
            ("train", latest.get("train_loss"), self.headline("train", width=7), self.speed()),
            (
                *("val", latest.get("val_loss"), self.headline("val", width=7)),
                "" if learning_rate is None else f"lr {learning_rate:.2g}",
            ),
        ]
        if best is not None:
            figure = self._figure(best["val_metrics"], width=7)
            rows.append(("best", best["val_loss"], figure, f"epoch {best['epoch']}"))
        return rows

    def _metrics(self) -> Table:
        grid = Table.grid(padding=(0, 2))
        for _ in range(4):
            grid.add_column(no_wrap=True, overflow="ellipsis")
        for name, value, figure, more in self.rows():
            grid.add_row(Text(name, style="dim"), f"loss {loss(value)}", figure, more)
        return grid

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


def _seed(module: GrownModule) -> tuple[Text, ...]:
    since = "" if module.state_epoch is None else f"epoch {module.state_epoch}"
    return (
        Text(module.site),
        Text(module.blueprint_id),
        Text.assemble((module.verdict, _STATE_STYLES.get(module.verdict, "")), "  ", (since, "dim")),
    )
