"""Shared by the benchmarks: hardware and versions, tables, JSON files, and ratios with confidence intervals."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from scipy import stats

from esper.tracking import environment as run_environment

__all__ = ["Ratio", "environment", "median_and_range", "paired_ratio", "table", "verdict", "write_json"]


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio with its 95 % confidence interval, from n pairs; no interval if n is 1."""

    mean: float
    low: float | None
    high: float | None
    n: int

    def __str__(self) -> str:
        between = "" if self.low is None else f" ({self.low:.4f} to {self.high:.4f})"
        return f"{self.mean:.4f}{between}"


def environment() -> dict[str, str | None]:
    """Hardware, versions and commit of a result; None where unknown."""
    recorded = run_environment()
    names = ("gpu", "cuda", "cpu", "num_threads", "python", "torch", "torchvision", "mlflow", "esper", "git_commit")
    cudnn = str(torch.backends.cudnn.version()) if torch.cuda.is_available() else None  # type: ignore[no-untyped-call]
    return {name: recorded[name] for name in names} | {"cores": str(os.cpu_count()), "cudnn": cudnn}


def paired_ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """Ratio of paired measurements: geometric mean, with a Student's t interval on the logarithms."""
    logs = [math.log(a / b) for a, b in zip(above, below, strict=True)]
    mean = statistics.mean(logs)
    if len(logs) == 1:
        return Ratio(math.exp(mean), None, None, 1)
    half = float(stats.t.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
    return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half), len(logs))


def median_and_range(values: Sequence[float], form: str = "{:.3f}") -> str:
    """`median (min to max)`, or a dash if there are no values."""
    if not values:
        return "–"
    return f"{form.format(statistics.median(values))} ({form.format(min(values))} to {form.format(max(values))})"


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """A Markdown table; the columns are the first row's keys, and None is a dash."""
    if not rows:
        return "(nothing was measured)"
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [["–" if row.get(key) is None else str(row[key]) for key in rows[0]] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def verdict(goal: str, is_met: bool | None) -> str:
    """One line: whether a goal is met; None: not measured."""
    return f"goal {goal}: {'not measured' if is_met is None else 'met' if is_met else 'MISSED'}"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a result and its environment atomically; dataclasses become dicts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(json.dumps({"environment": environment()} | dict(content), indent=1, default=asdict) + "\n")
    temporary.replace(path)
