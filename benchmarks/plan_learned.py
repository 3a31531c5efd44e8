"""Can it be learned when growing pays? Plans the longer trainings of studies from shorter ones, and judges a policy.

    python benchmarks/plan_learned.py [FILE.jsonl ...] [--out POLICY.json] [--draws 200]

Without FILE, rows of results/ are planned: each plan gets the runs of one seed at shorter budgets, which are not pilots
as `esper plan` trains them, and are not charged. FILE: rows of `plan.py`, whose pilots are charged. A policy is learned
from all families but one and judged on that one, as `esper simic` does.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import growing
from benchmarks.measuring import table
from benchmarks.places import new_file
from benchmarks.plan_curves import host_macs_of
from benchmarks.plan_report import observed
from benchmarks.workers import read_rows
from esper.contracts.metrics import ACCURACY, MetricInfo
from esper.files import decode
from esper.planning.judge import judge
from esper.planning.learned import cell_of
from esper.planning.observations import Observation, Question, Size
from esper.planning.record import SCHEMA
from esper.simic import growth
from esper.simic.growth import GROWN, Cell, GrowthPolicy

__all__ = ["main"]

_RESULTS = Path(__file__).with_name("results")
_LOSS = MetricInfo(name="loss", label="loss", unit="nats", higher_is_better=False)
_NARROW = "model.widths=[8,16,32]"


@dataclass(frozen=True, kw_only=True)
class Study:
    """Trainings of one host, recipe and data; MACs are epochs of the final network (a million bytes of text).

    Attributes:
        name: of the family.
        costs: MACs of host, size in between and final size.
        plans: budgets that a plan sees, and the one it is asked.
        seeds: of the plans; None: one plan from all seeds.
        headline: the figure.
        num_examples: of the split for validation.
    """

    name: str
    costs: tuple[int, int, int]
    plans: tuple[tuple[tuple[float, ...], float], ...]
    seeds: tuple[int, ...] | None
    headline: MetricInfo = ACCURACY
    num_examples: int | None = 2250


STUDIES = (
    Study(
        name="16-32-64", costs=(26657408, 40813184, 54968960), plans=(((10, 20), 40), ((10, 20), 80), ((20, 40), 80)),
        seeds=(200, 201, 202, 203),
    ),
    Study(
        name="8-16-32", costs=(6775104, 10314048, 13852992), plans=(((10, 20), 40),), seeds=(100, 101),
        num_examples=6000,
    ),
    Study(name="resnet18", costs=(555422720, 857412608, 1159402496), plans=(((15, 20), 45),), seeds=None),
    Study(
        name="gpt", costs=(956301312, 1426063360, 1895825408), plans=(((50, 90), 150),), seeds=(200, 201),
        headline=_LOSS, num_examples=None,
    ),
    Study(
        name="vit, 2 blocks", costs=(7668608, 11404288, 15139968), plans=(((20, 25), 40), ((20, 25, 40), 80)),
        seeds=None,
    ),
    Study(
        name="vit, 4 blocks", costs=(15139968, 22611328, 30082688),
        plans=(((10, 20), 40), ((10, 20), 80), ((20, 40), 80)), seeds=None,
    ),
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Print Markdown tables: of plans and their outcomes, and of the regret of each policy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, nargs="*")
    parser.add_argument("--out", type=new_file, help="write the policy here")
    parser.add_argument("--draws", type=int, default=200)
    options = parser.parse_args(arguments)
    cells = [cell for path in options.rows for cell in _planned(read_rows(path, ("cell", "role", "name")))]
    if not options.rows:
        rows = list(_rows())
        cells = [cell for study in STUDIES for cell in _cells(study, rows, num_draws=options.draws)]
    policy = growth.learn(cells)
    print(table([_formatted(cell, policy) for cell in cells]))
    print(table([{"": name, "regret": f"{value:.2f}"} for name, value in policy.regrets.items()]))
    print(f"\nThe policy is {policy.verdict}.")
    if options.out is not None:
        growth.write(policy, options.out)


def _formatted(cell: Cell, policy: GrowthPolicy) -> dict[str, str]:
    lead = cell.figures[GROWN] - cell.figures[cell.static]
    return {
        "family": cell.family,
        "MACs": f"{cell.macs:.3g}",
        "planned": cell.planned,
        **{f"regret: {name}": f"{cell.regret(name):.2f}" for name in ("host", "between", "final", GROWN)},
        "pilots": f"{cell.costs[cell.planned]:.2f}",
        "growing against": cell.static,
        "lead": f"{lead:+.2f}",
        "fitted": f"{policy.lead(cell.features):+.2f}",
        **{name: f"{value:.2f}" for name, value in zip(growth.FEATURES, cell.features, strict=True)},
    }


def _planned(rows: Sequence[Mapping[str, Any]]) -> Iterator[Cell]:
    """The cells of rows of `plan.py`."""
    rows = [row for row in rows if "error" not in row]
    for row in rows:
        if row["role"] == "plan":
            made = decode(json.dumps(row["plan"]), SCHEMA, where=row["cell"])
            runs = [one for one in rows if one["cell"] == row["cell"] and one["role"] != "plan"]
            cell = cell_of(made.plan, [observed(one, made) for one in runs], family=row["cell"].rpartition("-x")[0])
            if cell is not None:
                yield cell


def _cells(study: Study, rows: Sequence[tuple[str, float, Observation]], *, num_draws: int) -> Iterator[Cell]:
    mine = [(budget, one) for name, budget, one in rows if name == study.name]
    sizes = tuple(
        Size(name=name, label=name, macs_per_epoch=macs / study.costs[-1], num_parameters=macs)
        for name, macs in zip(("host", "between", "final"), study.costs, strict=True)
    )
    for seen, asked in study.plans:
        for seed in (None,) if study.seeds is None else study.seeds:
            pilots = [one for budget, one in mine if budget in seen and seed in (None, one.seed // 1000)]
            found = [one for budget, one in mine if budget == asked and one.seed // 1000 != seed]
            question = Question(sizes=sizes, headline=study.headline, macs=asked, num_examples=study.num_examples)
            cell = cell_of(judge(question, pilots, num_draws=num_draws), found, family=study.name)
            assert cell is not None, f"{study.name}, {asked}, {seed}"
            yield cell


def _rows() -> Iterator[tuple[str, float, Observation]]:
    """Study, budget and training of all rows that are used."""
    named = {
        "claims": "16-32-64", "small": "8-16-32", "resnet18": "resnet18", "gpt": "gpt", "vit": "vit, 2 blocks",
        "vit, 4 blocks": "vit, 4 blocks",
    }  # fmt: skip
    for row in growing.read_rows(_RESULTS / "growing.jsonl"):
        if row["study"] in named and row["arm"] in ("host", "between", "final", "grown") and "error" not in row:
            figure = row["val_loss" if row["study"] == "gpt" else "val_accuracy"]
            share = host_macs_of(row) / row["total_macs"]
            yield _row(named[row["study"]], row, row["budget"], row["seed"], share, row["val_loss"], figure)
    for row in json.loads((_RESULTS / "copies_pilot_2.json").read_text())["runs"]:
        changes = [_NARROW, "copy_init=shared"] if row["arm"] == "grown" else [_NARROW]
        if row["model"] == "resnet_small" and row["changes"] == changes:
            share, loss = row["grown_at_compute"] or 0.0, row["held_out_loss"]
            yield _row("8-16-32", row, row["final_epochs"], row["rng_seed"], share, loss, row["held_out_accuracy"])
    for row in json.loads((_RESULTS / "copies_pilot_3.json").read_text())["runs"]:
        if row["model"] == "resnet18" and not row["changes"]:
            share, loss = row["grown_at_compute"] or 0.0, row["val_loss"]
            yield _row("resnet18", row, row["final_epochs"], row["rng_seed"], share, loss, row["val_accuracy"])


def _row(
    name: str, row: Mapping[str, Any], budget: float, seed: int, share: float, loss: float, figure: float
) -> tuple[str, float, Observation]:
    one = Observation(
        size="final" if row["arm"] == "grown" else row["arm"],
        seed=1000 * seed + int(budget),  # no two budgets share a trunk
        macs=float(budget),
        host_macs=share * budget,
        loss=loss,
        figure=figure,
    )
    return name, budget, one


if __name__ == "__main__":
    main()
