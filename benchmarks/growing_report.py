"""Tables of what `growing.py` measured.

    python benchmarks/growing_report.py FILE.jsonl ... [--json]

Each budget (E: epochs of the final network, MB: million bytes through it) uses the seeds that all of its arms have
finished. The best static arm is the best one by mean validation accuracy, or loss if the study compares losses; the
test split has no part in the choice. Differences are of the test split, in points or nats a byte, paired by seed, with
95 % intervals (Student's t). p is Holm-adjusted over the claims of a study: grown against the best static arm wherever
there are twelve seeds or more. Transfer: see `esper.report.curves.transfer`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.growing import read_rows
from benchmarks.growing_studies import STATIC, STUDIES, TRUNK, Comparison
from benchmarks.measuring import table
from esper.report.curves import Curve, crossings, transfer
from esper.report.statistics import MIN_RUNS, holm, paired_t

__all__ = ["Difference", "differences", "main", "report"]

Row = dict[str, Any]
Runs = Mapping[tuple[str, float], Mapping[int, Row]]
"""Rows of a study by arm and budget, then by seed."""

_CLAIM_SEEDS = 12


@dataclass(frozen=True, kw_only=True)
class _Figure:
    """What arms are compared by: `test_NAME` and `val_NAME` of a row.

    Attributes:
        name: accuracy or loss.
        unit, difference: of a value and of a difference, in tables.
        factor, digits: how they are shown.
        higher_is_better: whether an arm is better that has more of it.
    """

    name: str
    unit: str
    difference: str
    factor: float
    digits: int
    higher_is_better: bool

    def best(self, values: Mapping[str, float]) -> str:
        """The key with the best value."""
        return (max if self.higher_is_better else min)(values, key=values.__getitem__)

    def show(self, value: float, sign: str = "") -> str:
        """A value without its unit, or a difference if the sign is `+`."""
        return f"{self.factor * value:{sign}.{self.digits}f}"


_FIGURES = {
    "accuracy": _Figure(
        name="accuracy", unit="%", difference="points", factor=100.0, digits=2, higher_is_better=True
    ),
    "loss": _Figure(
        name="loss", unit="nats a byte", difference="nats a byte (lower is better)", factor=1.0, digits=4,
        higher_is_better=False,
    ),
}  # fmt: skip


_COMPARISONS = {name: one for study in STUDIES.values() for name, one in study.items()}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Test accuracy or loss of an arm minus that of another with the same budget, in points or nats a byte.

    Attributes:
        study, arm, other, budget: what is compared.
        is_best_static: whether `other` is the best static arm.
        n: number of pairs.
        mean, low, high: with its 95 % interval, None below three pairs.
        p: two-sided, None below three pairs.
        adjusted_p: Holm-adjusted over the claims; None if this is no claim.
    """

    study: str
    arm: str
    other: str
    budget: float
    is_best_static: bool
    n: int
    mean: float
    low: float | None
    high: float | None
    p: float | None
    adjusted_p: float | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, or the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    found = report([row for file in options.files for row in read_rows(file)])
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for study in found:
        comparison = _COMPARISONS[study["study"]]
        print(f"## {study['study']}\n")
        print(table([_formatted(arm, comparison) for arm in study["arms"]]), end="\n\n")
        if study["differences"]:
            print(table([_formatted_difference(one, comparison) for one in study["differences"]]), end="\n\n")
        for line in study["curves"]:
            print(f"- {line}")
        print()


def report(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Per study: the arms, their differences, and what the curves say; as JSON data."""
    studies = {name: _by_arm(rows, name, comparison) for name, comparison in _COMPARISONS.items()}
    return [
        {
            "study": name,
            "arms": list(_arms(runs)),
            "differences": [dataclasses.asdict(one) for one in _adjust(differences(name, runs, _COMPARISONS[name]))],
            "curves": list(_curves(runs, _COMPARISONS[name])),
        }
        for name, runs in studies.items()
        if runs
    ]


def _by_arm(rows: Sequence[Row], study: str, comparison: Comparison) -> Runs:
    """The finished runs of a study, in the order of its table; of two of one cell the later."""
    found: dict[tuple[str, float], dict[int, Row]] = {}
    budgets = sorted({row["budget"] for row in rows if row["study"] == study})
    for key in ((arm, budget) for budget in budgets for arm in comparison.arms if arm != TRUNK):
        runs = {
            row["seed"]: row
            for row in rows
            if (row["study"], row["arm"], row["budget"]) == (study, *key) and "error" not in row
        }
        if runs:
            found[key] = runs
    return found


def _common_seeds(runs: Runs, budget: float) -> list[int]:
    """The seeds that all arms have finished with a budget."""
    return sorted(set.intersection(*(set(by_seed) for (_, other), by_seed in runs.items() if other == budget)))


def _values(runs: Mapping[int, Row], name: str, seeds: Sequence[int]) -> list[float]:
    return [float(runs[seed][name]) for seed in seeds]


def _budgets(runs: Runs) -> list[float]:
    return sorted({budget for _, budget in runs})


# --- arms and their differences ---------------------------------------------------------------------------------------


_MEANS = (
    "test_accuracy", "val_accuracy", "test_loss", "val_loss", "total_macs", "num_macs", "steps", "seconds",
)  # fmt: skip


def _arms(runs: Runs) -> Iterator[dict[str, Any]]:
    for (arm, budget), by_seed in runs.items():
        seeds, (first, *_) = list(by_seed), by_seed.values()
        means = {name: statistics.mean(_values(by_seed, name, seeds)) for name in _MEANS if name in first}
        deviations = {
            f"{name}_sd": statistics.stdev(_values(by_seed, name, seeds)) if len(seeds) > 1 else None
            for name in ("test_accuracy", "test_loss")
            if name in first
        }
        yield {"budget": budget, "arm": arm, "n": len(by_seed), **means, **deviations}


def _formatted(arm: Mapping[str, Any], comparison: Comparison) -> dict[str, object]:
    figure = _FIGURES[comparison.figure]
    name, sd = figure.name, arm[f"test_{figure.name}_sd"]
    deviation = "" if sd is None else f" ± {figure.show(sd)}"
    return {
        comparison.unit: arm["budget"],
        "arm": arm["arm"],
        "n": arm["n"],
        f"test {name} ± sd, {figure.unit}": f"{figure.show(arm[f'test_{name}'])}{deviation}",
        f"validation, {figure.unit}": figure.show(arm[f"val_{name}"]),
        **({"test loss": f"{arm['test_loss']:.4f}"} if name != "loss" else {}),
        "MACs, T": f"{arm['total_macs'] / 1e12:.2f}",
        "seconds": f"{arm['seconds']:.0f}",
    }


def differences(study: str, runs: Runs, comparison: Comparison) -> list[Difference]:
    """Every growing arm minus the best static arm, if all have been trained, and minus the reference."""
    found, figure = [], _FIGURES[comparison.figure]
    for budget in _budgets(runs):
        seeds = _common_seeds(runs, budget)
        at_budget = {arm: by_seed for (arm, other), by_seed in runs.items() if other == budget}
        if not seeds:
            continue
        static = [arm for arm in comparison.arms if arm in STATIC]
        best = None
        if static and set(static) <= set(at_budget):
            best = figure.best(
                {arm: statistics.mean(_values(at_budget[arm], f"val_{figure.name}", seeds)) for arm in static}
            )
        for arm in at_budget:
            for other in dict.fromkeys((best, comparison.reference)):
                if arm in STATIC or other is None or other not in at_budget or other == arm:
                    continue
                values = (_values(at_budget[one], f"test_{figure.name}", seeds) for one in (arm, other))
                ours, theirs = map(np.array, values)
                test, n = paired_t(figure.factor * (ours - theirs)), len(seeds)
                low, high, p = (float(value) if n >= MIN_RUNS else None for value in (test.low, test.high, test.p))
                found.append(
                    Difference(
                        study=study, arm=arm, other=other, budget=budget, is_best_static=other == best, n=n,
                        mean=float(test.mean), low=low, high=high, p=p,
                    )
                )  # fmt: skip
    return found


def _adjust(found: Sequence[Difference]) -> list[Difference]:
    """Holm-adjust p over the claims."""
    claims = [one for one in found if one.is_best_static and one.arm == "grown" and one.n >= _CLAIM_SEEDS]
    adjusted = dict(zip(claims, holm(np.array([one.p for one in claims])), strict=True))
    return [dataclasses.replace(one, adjusted_p=float(adjusted[one])) if one in adjusted else one for one in found]


_INTERVAL = ("mean", "low", "high")


def _formatted_difference(one: Mapping[str, Any], comparison: Comparison) -> dict[str, object]:
    is_known, figure = one["p"] is not None, _FIGURES[comparison.figure]
    mean, low, high = (value if value is None else f"{value:+.{figure.digits}f}" for value in map(one.get, _INTERVAL))
    return {
        comparison.unit: one["budget"],
        "difference": f"{one['arm']} − {one['other']}{' (best static)' if one['is_best_static'] else ''}",
        "n": one["n"],
        figure.difference: mean,
        "95 % interval": f"{low} to {high}" if is_known else None,
        "p": f"{one['p']:.2g}" if is_known else None,
        "p, Holm": None if one["adjusted_p"] is None else f"{one['adjusted_p']:.2g}",
    }


# --- curves -----------------------------------------------------------------------------------------------------------


def _curve(runs: Runs, arm: str, length: str, figure: _Figure) -> Curve:
    return [
        (statistics.mean(_values(by_seed, length, list(by_seed))), _mean(by_seed, figure))
        for (name, _), by_seed in runs.items()
        if name == arm
    ]


def _mean(by_seed: Mapping[int, Row], figure: _Figure) -> float:
    return statistics.mean(_values(by_seed, f"test_{figure.name}", list(by_seed)))


def _curves(runs: Runs, comparison: Comparison) -> Iterator[str]:
    """Where the static curves cross, the transfer rho at each budget, and the compute that growing saves."""
    unit, figure = comparison.unit, _FIGURES[comparison.figure]
    for one, other in (("host", "final"), ("host", "between"), ("between", "final")):
        for budget in crossings(_curve(runs, one, "budget", figure), _curve(runs, other, "budget", figure)):
            yield f"{one} and {other} cross at {unit} = {budget:.1f}"
    for (arm, budget), by_seed in runs.items():
        if arm in STATIC or any(len(row["growth_steps"]) != 1 for row in by_seed.values()):
            continue
        host_steps = statistics.mean(row["growth_steps"][0] for row in by_seed.values())
        rho = transfer(
            _curve(runs, "final", "steps", figure),
            accuracy=_mean(by_seed, figure),
            host_steps=host_steps,
            grown_steps=statistics.mean(_values(by_seed, "steps", list(by_seed))) - host_steps,
        )
        if rho is not None:
            share = statistics.mean(row["num_macs_before"] / row["num_macs"] for row in by_seed.values())
            yield (
                f"{unit} = {budget}, {arm}: transfer rho {rho:.2f}; a step of the host costs {share:.2f} of a final one"
            )
    yield from _savings(runs, comparison)


def _savings(runs: Runs, comparison: Comparison) -> Iterator[str]:
    """With how much less compute the grown arm reaches what the best static arm reaches, at each budget."""
    if comparison.trunk_budget is not None:  # what the trunk has spent is not in the rows of its arms
        return
    figure = _FIGURES[comparison.figure]
    grown = _curve(runs, "grown", "total_macs", figure)
    for one in differences("", runs, comparison):
        if one.arm != "grown" or not one.is_best_static:
            continue
        static = runs[one.other, one.budget]
        level, spent = _mean(static, figure), statistics.mean(_values(static, "total_macs", list(static)))
        # Where the grown curve crosses a horizontal line.
        reached = crossings(grown, [(macs, level) for macs, _ in grown])
        if len(reached) == 1:
            yield (
                f"{comparison.unit} = {one.budget}: grown reaches the {figure.name} of {one.other}, the best static "
                f"arm, with {reached[0] / spent:.0%} of its compute"
            )


if __name__ == "__main__":
    main()
