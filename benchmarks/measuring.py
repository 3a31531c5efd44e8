"""What the benchmarks of costs share: what they ran on, tables, JSON files, and ratios with their confidence."""

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

from esper.tracking import environment as recorded

__all__ = ["Ratio", "environment", "median_and_range", "paired_ratio", "table", "verdict", "write_json"]


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio with its 95 % confidence interval, from n pairs; the interval is None where n is 1."""

    mean: float
    low: float | None
    high: float | None
    n: int

    def __str__(self) -> str:
        between = "" if self.low is None else f" ({self.low:.4f} to {self.high:.4f})"
        return f"{self.mean:.4f}{between}"


def environment() -> dict[str, str | None]:
    """What a result was measured on: processor, cores, GPU, versions, commit; what cannot be found out is None."""
    found = recorded()
    names = ("gpu", "cuda", "cpu", "num_threads", "python", "torch", "torchvision", "mlflow", "esper", "git_commit")
    cudnn = str(torch.backends.cudnn.version()) if torch.cuda.is_available() else None  # type: ignore[no-untyped-call]
    return {name: found[name] for name in names} | {"cores": str(os.cpu_count()), "cudnn": cudnn}


def paired_ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """Ratio of two measurements that were taken in pairs: its geometric mean, Student's t on the logarithms."""
    logs = [math.log(one / other) for one, other in zip(above, below, strict=True)]
    mean = statistics.mean(logs)
    if len(logs) == 1:
        return Ratio(math.exp(mean), None, None, 1)
    half = float(stats.t.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
    return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half), len(logs))


def median_and_range(values: Sequence[float], form: str = "{:.3f}") -> str:
    """`median (lowest to highest)`; a dash for nothing."""
    if not values:
        return "–"
    return f"{form.format(statistics.median(values))} ({form.format(min(values))} to {form.format(max(values))})"


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Markdown; the columns are the first row's keys, and None is a dash."""
    if not rows:
        return "(nothing was measured)"
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [["–" if row.get(key) is None else str(row[key]) for key in rows[0]] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def verdict(goal: str, is_met: bool | None) -> str:
    """One line on a goal of the issue; None: it was not measured."""
    return f"goal {goal}: {'not measured' if is_met is None else 'met' if is_met else 'MISSED'}"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a result with what it was measured on, whole or not at all; dataclasses become dicts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    aside.write_text(json.dumps({"environment": environment()} | dict(content), indent=1, default=asdict) + "\n")
    aside.replace(path)
