"""Runs on disk as rows of a table: read, filtered and sorted."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from esper.configs.explain import nearest
from esper.configs.load import read_yaml
from esper.configs.schema import settings
from esper.configs.tolaria import TolariaConfig
from esper.contracts.metrics import MetricInfo, headline_of
from esper.errors import ConfigError, RunError
from esper.sweep.member_state import NOT_STARTED
from esper.sweep.progress import Progress
from esper.tracking.journal import run_folders
from esper.tracking.liveness import last_seen_s, read_status, recorded_status
from esper.tracking.metrics import parameters

__all__ = ["Listing", "Row", "parse_filters", "recorded_settings"]


@dataclass(kw_only=True)
class Row:
    """A run.

    Attributes:
        run_dir: its folder.
        status: not started, running, finished, failed, interrupted or killed.
        reason: why it failed or was interrupted; when a killed run was last seen.
        split: test of a finished run, val of another.
        figure: the leading metric on that split; of a run that has not finished, in its last epoch.
        headline: what that metric is.
        macs: multiply-accumulates spent, growth included.
        seconds: time spent.
        seen_s: Unix time of its last event.
    """

    run_dir: Path
    status: str
    reason: str
    split: str
    figure: float | None
    headline: MetricInfo
    macs: float | None
    seconds: float | None
    seen_s: float

    @property
    def experiment(self) -> str:
        """Name of the experiment's folder."""
        return self.run_dir.parent.name

    @property
    def name(self) -> str:
        """Name of the run folder."""
        return self.run_dir.name

    def as_json(self) -> dict[str, Any]:
        """The run as a JSON object."""
        return {
            "run_dir": str(self.run_dir),
            "experiment": self.experiment,
            "name": self.name,
            "status": self.status,
            "reason": self.reason,
            "metric": self.headline.name,
            "split": self.split,
            "value": self.figure,
            "unit": self.headline.unit,
            "total_macs": self.macs,
            "seconds": self.seconds,
            "last_seen_unix_s": self.seen_s,
        }


@dataclass(kw_only=True)
class Listing:
    """The runs at and below a folder, which may be read again and again.

    Attributes:
        folder: the folder.
        filters: see `parse_filters`.
        sort: experiment, name, status, figure, macs, time or age.
        is_reversed: whether to turn the order around.
        quiet_s: seconds from the last event of any run, wanted or not, to the last reading; 0 if one was running.
    """

    folder: Path
    filters: Sequence[tuple[str, str]] = ()
    sort: str = "age"
    is_reversed: bool = False
    quiet_s: float = field(default=0.0, init=False)
    _progress: dict[Path, Progress] = field(default_factory=dict)

    def rows(self) -> list[Row]:
        """The runs that pass the filters, sorted: best figures, cheapest and newest runs first.

        Raises:
            RunError: there is no run at all.
        """
        folders = run_folders(self.folder)
        if not folders:
            raise RunError(f"{self.folder} holds no run: there is no journal.jsonl at or below it; name another folder")
        found = [self._read(folder.absolute()) for folder in folders]
        self.quiet_s = min(0.0 if row.status == "running" else time.time() - row.seen_s for row in found)
        rows = [row for row in found if self._is_wanted(row)]
        return sorted(sorted(rows, key=lambda row: row.run_dir), key=self._order, reverse=self.is_reversed)

    def _read(self, run_dir: Path) -> Row:
        status, reason = read_status(run_dir)
        try:
            result = (recorded_status(run_dir) or {}).get("result")
        except RunError:
            result = None
        if result:
            headline, split = headline_of(result), "test" if status == "finished" else "val"
            figure, seconds = result.get(f"{split}_{headline.name}"), result["seconds"]
            macs = result.get("total_macs") or result["train_macs"] + result["growth_macs"]
        else:
            progress = self._progress.setdefault(run_dir, Progress(journal=run_dir / "journal.jsonl"))
            progress.update()
            headline, split, figure = progress.headline, "val", progress.metric
            macs, seconds = (progress.macs, progress.seconds) if progress.total_epochs else (None, None)
        return Row(
            run_dir=run_dir,
            status=status or NOT_STARTED,
            reason=reason,
            split=split,
            figure=figure,
            headline=headline,
            macs=macs,
            seconds=seconds,
            seen_s=_seen_s(run_dir),
        )

    def _is_wanted(self, row: Row) -> bool:
        own = {"experiment": row.experiment, "name": row.name, "status": row.status, "metric": row.headline.name}
        configured: Mapping[str, str] | None = None
        for key, pattern in self.filters:
            if not key:
                texts = [f"{row.experiment}/{row.name}"]
            elif key in own:
                texts = [own[key]]
            else:
                configured = parameters(recorded_settings(row.run_dir)) if configured is None else configured
                texts = [configured[key]] if key in configured else []
            if not any(fnmatch.fnmatchcase(text.casefold(), pattern.casefold()) for text in texts):
                return False
        return True

    def _order(self, row: Row) -> Any:
        values = {
            "experiment": (row.experiment, row.name),
            "name": row.name,
            "status": row.status,
            "figure": None if row.figure is None else -row.figure * row.headline.sign,
            "macs": row.macs,
            "time": row.seconds,
            "age": -row.seen_s,
        }
        value = values[self.sort]
        return (value is None) != self.is_reversed, value if value is not None else 0  # unknown values come last


def parse_filters(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Key and pattern of each filter: `status=finished`, `model.name=resnet*`, or `quick`, a part of the name.

    Keys are experiment, name, status, metric and every setting, whose group may be left out if that is unambiguous.

    Raises:
        ConfigError: there is no such key.
    """
    return [_parse_filter(text) for text in texts]


def _parse_filter(text: str) -> tuple[str, str]:
    key, equals, pattern = text.partition("=")
    if not equals:
        return "", f"*{text}*"
    if key in ("experiment", "name", "status", "metric"):
        return key, pattern
    known = [name for name, _, _ in settings(TolariaConfig)]
    found = [key] if key in known else [name for name in known if name.endswith(f".{key}")]
    if len(found) != 1:
        names = ["experiment", "name", "status", "metric", *known]
        problem = f"is {' and '.join(found)}; name one" if found else f"no such column or setting{nearest(key, names)}"
        raise ConfigError(f"--filter {text}: {key}: {problem}")
    return found[0], pattern


def recorded_settings(run_dir: Path) -> dict[str, Any]:
    """The run's configuration as it is recorded; {} if that is missing or damaged."""
    try:
        content = yaml.safe_load(read_yaml(run_dir / "config.yaml"))
    except (ConfigError, yaml.YAMLError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _seen_s(run_dir: Path) -> float:
    try:
        return last_seen_s(run_dir)
    except OSError:  # it has neither an event nor a status
        return run_dir.stat().st_mtime
