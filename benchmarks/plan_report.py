"""Tables of `plan.py`: regret of plans and of fixed choices, and how often intervals hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from esper.files import decode
from esper.planning.check import check
from esper.planning.observations import Observation
from esper.planning.record import SCHEMA, PlanRecord

__all__ = ["report"]

Row = Mapping[str, Any]


def report(rows: Sequence[Row]) -> str:
    """Markdown: a row a cell, then means over the cells; losses in nats, accuracies in points."""
    rows = [row for row in rows if "error" not in row]
    plans = {
        row["cell"]: decode(json.dumps(row["plan"]), SCHEMA, where=row["cell"]) for row in rows if row["role"] == "plan"
    }
    lines = [
        "| cell | n | recommended | matters | regret: plan | host | between | final | grown at 30 % | inside 80 % |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    regrets: dict[str, dict[str, list[float]]] = {"points": {}, "nats": {}}
    inside: list[bool] = []
    for cell, made in plans.items():
        runs = [row for row in rows if row["cell"] == cell and row["role"] != "plan"]
        means, num_seeds = _means(runs, made)
        if "plan" not in means or len(means) < 2:
            continue
        unit = "points" if _is_percent(made) else "nats"
        best = max(value for name, value in means.items() if name != "plan")
        lost = {name: best - value for name, value in means.items()}
        for name, value in lost.items():
            regrets[unit].setdefault(name, []).append(value)
        held = [one.is_inside for one in check(made, [_observed(row, made) for row in runs])]
        inside += held
        chosen = made.plan.recommended
        cells = [f"{lost[name]:.3f}" if name in lost else "–" for name in ("plan", "host", "between", "final", "grown")]
        option = chosen.size if chosen.share is None else f"grow at {100 * chosen.share:.0f} %"
        matters = "yes" if made.plan.matters else "no"
        head = [cell, str(num_seeds), option, matters, f"{cells[0]} {unit}", *cells[1:]]
        lines.append(f"| {' | '.join(head)} | {sum(held)} of {len(held)} |")
    for unit, of_choice in regrets.items():
        if of_choice:
            means_text = ", ".join(f"{name} {np.mean(values):.3f}" for name, values in of_choice.items())
            lines.append(f"\nMean regret in {unit} over {len(of_choice['plan'])} cells, pilots charged: {means_text}.")
    if inside:
        lines.append(f"80 % intervals hold {sum(inside)} of {len(inside)} runs ({100 * np.mean(inside):.0f} %).")
    return "\n".join(lines)


def _is_percent(made: PlanRecord) -> bool:
    return made.plan.question.headline.unit == "%"


def _means(runs: Sequence[Row], made: PlanRecord) -> tuple[dict[str, float], int]:
    """Mean test result of each option (points, or nats with a minus: higher is better), and the fewest seeds."""
    found: dict[str, list[float]] = {}
    for row in runs:
        result, name = row["result"], made.plan.question.headline.name
        value = 100 * result[f"test_{name}"] if _is_percent(made) else -result["test_loss"]
        found.setdefault(row["name"], []).append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}, min(map(len, found.values()), default=0)


def _observed(row: Row, made: PlanRecord) -> Observation:
    result = row["result"]
    return Observation(
        size=row["size"],
        seed=row["seed"],
        macs=result["total_macs"],
        host_macs=(row["share"] or 0.0) * result["total_macs"],
        loss=result["val_loss"],
        figure=result[f"val_{made.plan.question.headline.name}"],
        seconds=result["seconds"],
        is_pilot=False,
    )
