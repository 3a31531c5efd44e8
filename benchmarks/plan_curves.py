"""Do the curves of `esper plan` predict longer trainings? Fits them to short runs of studies, and looks at longer ones.

    python benchmarks/plan_curves.py [FILE.jsonl] [--draws 200]

FILE: rows of `growing.py`; by default those of results/. Each fit gets one run of every size and budget and one that
grew, as a plan of one seed does, and predicts all runs with other seeds at a larger budget, seed by seed. Nothing is
trained. The rows are no cells of `plan.py`; what plans assume may be chosen by them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.growing import read_rows
from benchmarks.measuring import table
from esper.contracts.metrics import ACCURACY, MetricInfo
from esper.planning.forecast import forecast
from esper.planning.observations import Choice, Observation, Question, Size

__all__ = ["host_macs_of", "main"]

Row = dict[str, Any]

_ROWS = Path(__file__).with_name("results") / "growing.jsonl"
_LOSS = MetricInfo(name="loss", label="loss", unit="nats", higher_is_better=False)
_ARMS = ("host", "between", "final", "grown")
_NUM_VAL = 2250
"""Images of the split for validation in these studies."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Budgets to fit, and one to predict.

    Attributes:
        study: of `growing.py`.
        seen: budgets.
        asked: budget.
        seeds: of the fits, one each.
    """

    study: str
    seen: tuple[float, ...]
    asked: float
    seeds: tuple[int, ...]


CASES = (
    Case(study="claims", seen=(10, 20), asked=40, seeds=(200, 201, 202, 203)),
    Case(study="claims", seen=(10, 20), asked=80, seeds=(200, 201, 202, 203)),
    Case(study="claims", seen=(10, 20, 40), asked=80, seeds=(200, 201, 202, 203)),
    Case(study="claims", seen=(20, 40), asked=80, seeds=tuple(range(200, 212))),
    Case(study="gpt", seen=(50, 90), asked=150, seeds=(200, 201)),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, nargs="?", default=_ROWS)
    parser.add_argument("--draws", type=int, default=200)
    options = parser.parse_args(arguments)
    rows = [row for row in read_rows(options.rows) if "error" not in row and row["arm"] in _ARMS]
    found = []
    for case in CASES:
        mine = [row for row in rows if row["study"] == case.study]
        for headline in (ACCURACY, _LOSS) if "val_accuracy" in mine[0] else (_LOSS,):
            found += [_predicted(case, mine, headline, num_draws=options.draws)]
    print(table(found))


def _predicted(case: Case, rows: Sequence[Row], headline: MetricInfo, *, num_draws: int) -> dict[str, str]:
    held: list[bool] = []
    widths: list[float] = []
    misses: dict[str, list[float]] = {arm: [] for arm in _ARMS}
    for seed in case.seeds:
        seen = [row for row in rows if row["budget"] in case.seen and row["seed"] == seed]
        question = _question(rows, headline)
        fitted = forecast(question, [_observed(row, headline) for row in seen], num_draws=num_draws)
        for arm in _ARMS:
            asked = [row for row in rows if (row["arm"], row["budget"]) == (arm, case.asked) and row["seed"] != seed]
            macs = float(np.mean([row["total_macs"] for row in asked]))
            choice = Choice(size=_size(arm), share=host_macs_of(asked[0]) / macs or None)
            shown = fitted.figure_of(choice, macs)
            figures = [row[f"val_{headline.name}"] for row in asked]
            held += [shown.low <= figure <= shown.high for figure in figures]
            widths.append((shown.high - shown.low) / 2)
            misses[arm].append(float(np.mean(figures)) - shown.expected)
    scale, digits = (100, 2) if headline.unit == "%" else (1, 4)
    return {
        "study": case.study,
        "budgets": ", ".join(f"{budget:g}" for budget in case.seen),
        "predicted": f"{case.asked:g}",
        "figure": headline.label if headline.unit != "%" else "points",
        "fits": str(len(case.seeds)),
        "inside 80 %": f"{np.mean(held):.0%}",
        "half a width": f"{scale * np.mean(widths):.{digits}f}",
        "found - expected": ", ".join(f"{arm} {scale * np.mean(values):+.{digits}f}" for arm, values in misses.items()),
    }


def _size(arm: str) -> str:
    return "final" if arm == "grown" else arm


def _question(rows: Sequence[Row], headline: MetricInfo) -> Question:
    networks = {row["arm"]: row for row in rows if row["arm"] != "grown"}
    final = networks["final"]
    epoch = final["max_macs"] / final["budget"] / final["num_macs"]
    return Question(
        sizes=tuple(
            Size(
                name=arm, label=arm, macs_per_epoch=epoch * networks[arm]["num_macs"],
                num_parameters=networks[arm]["num_parameters"],
            )
            for arm in _ARMS[:-1]
        ),
        headline=headline,
        macs=1.0,
        num_examples=_NUM_VAL,
    )  # fmt: skip


def host_macs_of(row: Row) -> float:
    """MACs before it grew, from those of the whole run, its steps and the two networks."""
    if row["arm"] != "grown":
        return 0.0
    before, after = row["num_macs_before"], row["num_macs"]
    per_example = row["total_macs"] / (
        row["growth_steps"][0] * before + (row["steps"] - row["growth_steps"][0]) * after
    )
    return float(per_example * row["growth_steps"][0] * before)


def _observed(row: Row, headline: MetricInfo) -> Observation:
    return Observation(
        size=_size(row["arm"]),
        seed=100 * row["seed"] + int(row["budget"]),  # no two budgets share a trunk
        macs=row["total_macs"],
        host_macs=host_macs_of(row),
        loss=row["val_loss"],
        figure=row[f"val_{headline.name}"],
        seconds=row["seconds"],
    )


if __name__ == "__main__":
    main()
