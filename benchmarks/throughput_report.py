"""Results of `throughput.py`: rows, ratios within rounds, tables, and the JSON file."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.esper_run import Rates, tracker
from benchmarks.trainings import hardware

__all__ = ["BARE", "DEFAULT", "OFF", "Record", "Row", "ratios"]

OFF, DEFAULT, BARE = "Esper, off", "Esper, default", "Esper's bare step"
_PACKAGES = ("torch", "torchvision", "lightning", "timm", "accelerate", "transformers")
_TRANSFORMERS = ("gpt", "vit")
"""Of these each peer is compared with Esper in the same form, compiled or not."""


@dataclass(kw_only=True)
class Row:
    """One contender. Rates, of images or tokens per second, are by round; round 0 selects the fastest peers.

    Attributes:
        ready_s: seconds to build and warm it up; Esper's include loading the data and a first whole epoch, the bare
            step's are 0 if its trainer is open already.
        failed: why it has no rates, or no further ones.
    """

    name: str
    part: str
    batch_size: int
    is_compiled: bool
    ready_s: float | None = None
    rates: dict[int, float] = field(default_factory=dict)
    steps_rates: dict[int, float] = field(default_factory=dict)
    failed: str | None = None

    def add(self, round_number: int, rates: Rates) -> None:
        """Add a measurement."""
        self.rates[round_number] = rates.rate
        if rates.steps_rate is not None:
            self.steps_rates[round_number] = rates.steps_rate


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A row's rate divided by another's, by round; `goal`: the minimum median."""

    name: str
    batch_size: int
    is_compiled: bool
    values: tuple[float, ...]
    goal: float | None = None


class Record:
    """All rows of a benchmark run, and their file."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.rows: list[Row] = []
        self._path = options.out
        self._head: dict[str, Any] = {
            "hardware": {**hardware(), "cores": str(os.cpu_count())},
            "versions": {name: _version(name) for name in _PACKAGES},
            "tracker": tracker(options),
            "data": Path(options.data).name if options.data else "synthetic, or Python's standard library",
            "unit": "tokens/s" if options.model == "gpt" else "images/s",
            "settings": {key: value for key, value in vars(options).items() if key not in ("out", "data")},
        }

    def write(self) -> None:
        """Write the file atomically."""
        content = self._head | {
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "ratios": [dataclasses.asdict(ratio) for ratio in self._ratios()],
        }
        temporary = self._path.with_suffix(".part")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(content, indent=1))
        temporary.replace(self._path)

    def report(self) -> str:
        """Markdown: environment, rates, ratios."""
        environment = {**self._head["hardware"], **self._head["versions"], "tracker": self._head["tracker"]}
        lines = [", ".join(f"{name} {value or 'absent'}" for name, value in environment.items()), ""]
        lines += [
            f"| | batch | compiled | {self._head['unit']}, median (range) | steps alone, by the journal | n | "
            "ready after, s |"
        ]
        lines += ["|---|---|---|---|---|---|---|", *map(_cells, self.rows), ""]
        lines += ["| ratio | batch | compiled | median (range) | n | goal |", "|---|---|---|---|---|---|"]
        for one in self._ratios():
            goal = "" if one.goal is None else f"{one.goal:g}: {'yes' if _median(one.values) >= one.goal else 'NO'}"
            cells = [one.name, str(one.batch_size), _yes(one.is_compiled), _spread(one.values, "{:.3f}")]
            lines.append("| " + " | ".join([*cells, str(len(one.values)), goal]) + " |")
        return "\n".join(lines)

    def _ratios(self) -> list[Ratio]:
        return ratios(self.rows, in_one_form=self._head["settings"]["model"] in _TRANSFORMERS)


def ratios(rows: Sequence[Row], *, in_one_form: bool = False) -> list[Ratio]:
    """Ratios of Esper `default` and `off`, to its bare step, and to the fastest peer of each round.

    At batch sizes other than the first, the peers' rounds come after Esper's.

    Args:
        rows: the contenders.
        in_one_form: compare compiled with compiled, and uncompiled with uncompiled, instead of with the fastest of all.
    """
    found = {(row.name, row.batch_size, row.is_compiled): row for row in rows}
    made = []
    for batch_size, is_compiled in sorted({(row.batch_size, row.is_compiled) for row in rows}):
        none = Row(name="", part="", batch_size=batch_size, is_compiled=is_compiled)
        off, default, bare = (found.get((name, batch_size, is_compiled), none) for name in (OFF, DEFAULT, BARE))
        forms = {is_compiled} if in_one_form else {False, True}
        rivals = [row for row in rows if row.part == "peers" and row.batch_size == batch_size]
        peers = _fastest(row for row in rivals if row.is_compiled in forms)
        goal = (1.2 if is_compiled else 1.5) if in_one_form else 3.0
        for name, above, below, lowest in (
            ("default / off, end to end", default.rates, off.rates, 0.99),
            ("default / off, steps alone", default.steps_rates, off.steps_rates, None),
            ("off, end to end / bare step", off.rates, bare.rates, 0.95),
            ("off, steps alone / bare step", off.steps_rates, bare.rates, None),
            ("off, end to end / fastest peer", off.rates, peers, goal if batch_size == 128 else None),
            ("default, end to end / fastest peer", default.rates, peers, goal if batch_size == 128 else None),
        ):
            values = tuple(above[number] / below[number] for number in sorted(above.keys() & below.keys()))
            if values:
                ratio = Ratio(name=name, batch_size=batch_size, is_compiled=is_compiled, values=values, goal=lowest)
                made.append(ratio)
    return made


def _fastest(rows: Iterable[Row]) -> dict[int, float]:
    """Highest rate of each round."""
    fastest: dict[int, float] = {}
    for row in rows:
        for number, rate in row.rates.items():
            fastest[number] = max(rate, fastest.get(number, 0.0))
    return fastest


def _cells(row: Row) -> str:
    steps = list(row.steps_rates.values())
    rates = list(row.rates.values())
    cells = [row.name, str(row.batch_size), _yes(row.is_compiled), _spread(rates, "{:,.0f}") if rates else ""]
    cells += [_spread(steps, "{:,.0f}") if steps else "", str(len(rates))]
    cells += ["" if row.ready_s is None else f"{row.ready_s:.1f}"]
    if row.failed:
        cells[3] = f"{cells[3]} {row.failed}".strip()
    return "| " + " | ".join(cells) + " |"


def _spread(values: Sequence[float], form: str) -> str:
    median, low, high = (form.format(value) for value in (_median(values), min(values), max(values)))
    return f"{median} ({low}–{high})"


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
