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
Results = Mapping[str, Mapping[int, float]]

_FIXED = ("host", "between", "final", "grown")


def report(rows: Sequence[Row]) -> str:
    """Markdown: a row a cell, then means over the cells; losses in nats, accuracies in points.

    Regret is against the fixed choice with the best mean over the seeds that all options have. "Choice alone" is that
    of what is recommended (of growing: at 30 %) with the whole budget, so the rest is what pilots cost. The best of
    four noisy means is better than it will be again, so regret is also given against the choice that is the best
    with the other seeds, which errs the other way.
    """
    rows = [row for row in rows if "error" not in row]
    plans = {
        row["cell"]: decode(json.dumps(row["plan"]), SCHEMA, where=row["cell"]) for row in rows if row["role"] == "plan"
    }
    results = {cell: _results([row for row in rows if row["cell"] == cell], made) for cell, made in plans.items()}
    lines = [
        "| cell | budget / crossing | n | recommended | matters | regret: plan | choice alone "
        "| host | between | final | grown at 30 % | inside 80 % |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    total: dict[str, dict[str, list[float]]] = {"points": {}, "nats": {}}
    with_others: dict[str, list[float]] = {"points": [], "nats": []}
    inside: list[bool] = []
    for cell, made in plans.items():
        found, unit = results[cell], "points" if _is_percent(made) else "nats"
        seeds = sorted(set.intersection(*(set(values) for values in found.values()))) if "plan" in found else []
        if not seeds or not found.keys() >= set(_FIXED):
            continue
        lost = _regrets(found, seeds, seeds)
        chosen = made.plan.recommended
        alone = lost.get("grown" if chosen.share is not None else chosen.size, float("nan"))
        for name, value in {**lost, "choice alone": alone}.items():
            total[unit].setdefault(name, []).append(value)
        if len(seeds) > 1:
            parts = [_regrets(found, [seed], [s for s in seeds if s != seed])["plan"] for seed in seeds]
            with_others[unit].append(float(np.mean(parts)))
        runs = [row for row in rows if row["cell"] == cell and row["role"] != "plan"]
        held = [one.is_inside for one in check(made, [observed(row, made) for row in runs])]
        inside += held
        option = chosen.size if chosen.share is None else f"grow at {100 * chosen.share:.0f} %"
        entries = [
            cell, _multiple(cell, plans, results), str(len(seeds)), option, "yes" if made.plan.matters else "no",
            f"{lost['plan']:.3f} {unit}", f"{alone:.3f}", *(f"{lost[name]:.3f}" for name in _FIXED),
            f"{sum(held)} of {len(held)}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(entries)} |")
    for unit, of_choice in total.items():
        if of_choice:
            means = ", ".join(f"{name} {np.nanmean(values):.3f}" for name, values in of_choice.items())
            lines.append(f"\nMean regret in {unit} over {len(of_choice['plan'])} cells, pilots charged: {means}.")
        if with_others[unit]:
            lines[-1] += f" Plan, against what is best with other seeds: {np.mean(with_others[unit]):.3f}."
    if inside:
        lines.append(f"\n80 % intervals hold {sum(inside)} of {len(inside)} runs ({100 * np.mean(inside):.0f} %).")
    return "\n".join(lines)


def _is_percent(made: PlanRecord) -> bool:
    return made.plan.question.headline.unit == "%"


def _results(rows: Sequence[Row], made: PlanRecord) -> dict[str, dict[int, float]]:
    """Test result of each option and seed: points, or nats with a minus: higher is better."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["role"] != "plan":
            result, name = row["result"], made.plan.question.headline.name
            value = 100 * result[f"test_{name}"] if _is_percent(made) else -result["test_loss"]
            found.setdefault(row["name"], {})[row["seed"]] = value
    return found


def _regrets(found: Results, seeds: Sequence[int], chosen_by: Sequence[int]) -> dict[str, float]:
    """Mean over some seeds of what each option loses against the fixed choice that is the best with other ones."""

    def mean(name: str, of: Sequence[int]) -> float:
        return float(np.mean([found[name][seed] for seed in of]))

    best = max(_FIXED, key=lambda name: mean(name, chosen_by))
    return {name: mean(best, seeds) - mean(name, seeds) for name in found}


def _multiple(cell: str, plans: Mapping[str, PlanRecord], results: Mapping[str, Results]) -> str:
    """The budget as a multiple of that at which host and final size are equally good.

    Between the budgets of a family, and beyond them (with a ~), the difference is taken as linear in their logarithm.
    """
    family = cell.rpartition("-x")[0]
    points = []
    for name, made in plans.items():
        found, macs = results[name], made.plan.question.macs
        if name.rpartition("-x")[0] == family and {"host", "final"} <= found.keys() and macs is not None:
            ahead = np.mean(list(found["final"].values())) - np.mean(list(found["host"].values()))
            points.append((np.log(macs), float(ahead)))
    asked = plans[cell].plan.question.macs
    if len(points) != 2 or asked is None:
        return "–"
    (first, low), (last, high) = sorted(points)
    if high <= low:
        return "–"
    crossing = first - low * (last - first) / (high - low)
    return f"{'' if low <= 0 <= high else '~'}{np.exp(np.log(asked) - crossing):.2g}"


def observed(row: Row, made: PlanRecord) -> Observation:
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
