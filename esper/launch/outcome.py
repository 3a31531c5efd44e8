"""What `fit` returns: how a run ended, its network and its history."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from esper.contracts.metrics import headline_of
from esper.terminal.notebook import curves
from esper.tracking import read
from esper.tracking.formatting import change, clock, loss, metric, number
from esper.tracking.history import History

if TYPE_CHECKING:
    from esper.inference import Network

__all__ = ["Outcome"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended; a notebook shows it as a table with curves.

    Attributes:
        exit_code: 0 finished, 128 + n stopped by signal n: 130 Ctrl-C, 143 SIGTERM.
        metric: the task's leading metric on the validation split at the end (accuracies in [0, 1]); None unless
            finished.
        result: of the finished run, as `contracts.events.RunEnded` holds it.
        run_dir: the run folder.
        model: what `fit(model=…)` got.
    """

    exit_code: int
    metric: float | None
    result: dict[str, Any] | None
    run_dir: Path
    model: Any = field(default=None, repr=False)

    @functools.cached_property
    def network(self) -> Network:
        """The trained network, on the CPU and in eval mode: `esper.load(outcome.run_dir)`.

        Raises:
            CheckpointError: the run has no checkpoint, or a module is neither kept nor culled yet.
        """
        from esper.inference import load  # takes time that a command does not need

        return load(self.run_dir, model=self.model)

    @property
    def history(self) -> dict[str, list[Any]]:
        """One entry an epoch, also of those trained before an interruption; `pandas.DataFrame(outcome.history)`.

        Columns: epoch, step, train_loss, val_loss, train_NAME and val_NAME of every metric, learning_rate, seconds.
        """
        epochs = self._read().epochs
        columns = {name: [event[name] for event in epochs] for name in ("epoch", "step", "train_loss", "val_loss")}
        for split in ("train", "val"):
            names = dict.fromkeys(name for event in epochs for name in event[f"{split}_metrics"])
            for name in names:
                columns[f"{split}_{name}"] = [event[f"{split}_metrics"].get(name) for event in epochs]
        columns["learning_rate"] = [event["learning_rate"] for event in epochs]
        columns["seconds"] = [event["epoch_time"] for event in epochs]
        return columns

    def _read(self) -> History:
        journal = self.run_dir / "journal.jsonl"
        return History.of(read(journal)) if journal.exists() else History()  # a dry run has none

    def _repr_html_(self) -> str:
        history = self._read()
        title = f"<div><b>{escape(self.run_dir.name)}</b> {escape(_status(self, history))}</div>"
        page = os.path.relpath(self.run_dir / "report.html")  # a notebook's server shows files below its folder
        where = f'<div>report: <a href="{quote(page)}">{escape(page)}</a></div>'
        rows = "".join(
            f'<tr><td style="text-align:left">{escape(name)}</td><td style="text-align:left">{escape(text)}</td></tr>'
            for name, text in _rows(self.result).items()
        )
        return f"{title}<table>{rows}</table>{curves(history)}{where}"


def _status(outcome: Outcome, history: History) -> str:
    if outcome.result is not None:
        return f"finished: {history.summary}"
    if outcome.exit_code == 0:
        return "dry run"
    resumes = "" if history.resume_step is None else "; the same call resumes it"
    return f"stopped at step {history.step:,}{resumes}"


def _rows(result: dict[str, Any] | None) -> dict[str, str]:
    if result is None:
        return {}
    info = headline_of(result)
    rows = {
        f"{split} {info.label}": f"{metric(result[f'{split}_{info.name}'], info)}, loss {loss(result[f'{split}_loss'])}"
        for split in ("test", "val")
    }
    for label, key in (("parameters", "num_parameters"), ("MACs per example", "num_macs")):
        before, after = result[f"{key}_before"], result[key]
        grown = f"{number(before)} → {number(after)} ({change(before, after)})"
        rows[label] = grown if before != after else number(after)
    return rows | {"time": clock(result["seconds"])}
