"""Tables of what `growing.py` measured.

    python benchmarks/growing_report.py FILE.jsonl ... [--json]

Each budget uses the seeds that all of its arms have finished. The best static arm is the one with the highest mean
validation accuracy; the test split has no part in the choice. Differences are of test accuracy, in points, paired by
seed, with 95 % intervals (Student's t). p is Holm-adjusted over the claims: grown against the best static arm wherever
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
from benchmarks.growing_cells import STATIC, STUDIES, TRUNK, Comparison
from benchmarks.measuring import table
from esper.report.curves import Curve, crossings, transfer
from esper.report.statistics import holm, paired_t

__all__ = ["Difference", "differences", "main", "report"]

Row = dict[str, Any]
Runs = Mapping[tuple[str, int], Mapping[int, Row]]
"""Rows of a study by arm and budget, then by seed."""

_CLAIM_SEEDS = 12


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Test accuracy of an arm minus that of another with the same budget, in points.

    Attributes:
        study, arm, other, epochs: what is compared; epochs of the final network.
        is_best_static: whether `other` is the best static arm.
        n: number of pairs.
        mean, low, high: with its 95 % interval, None for one pair.
        p: two-sided, None for one pair.
        adjusted_p: Holm-adjusted over the claims; None if this is no claim.
    """

    study: str
    arm: str
    other: str
    epochs: int
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
        print(f"## {study['study']}\n")
        print(table([_formatted(arm) for arm in study["arms"]]), end="\n\n")
        if study["differences"]:
            print(table([_formatted_difference(one) for one in study["differences"]]), end="\n\n")
        for line in study["curves"]:
            print(f"- {line}")
        print()


def report(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Per study: the arms, their differences, and what the curves say; as JSON data."""
    comparisons = {name: one for study in STUDIES.values() for name, one in study.items()}
    studies = {name: _by_arm(rows, name, comparison) for name, comparison in comparisons.items()}
    compared = {name: differences(name, runs, comparisons[name]) for name, runs in studies.items() if runs}
    adjusted = _adjust([one for found in compared.values() for one in found])
    return [
        {
            "study": name,
            "arms": list(_arms(runs)),
            "differences": [dataclasses.asdict(one) for one in adjusted if one.study == name],
            "curves": list(_curves(runs)),
        }
        for name, runs in studies.items()
        if runs
    ]


def _by_arm(rows: Sequence[Row], study: str, comparison: Comparison) -> Runs:
    """The finished runs of a study, in the order of its table; of two of one cell the later."""
    found: dict[tuple[str, int], dict[int, Row]] = {}
    epochs = sorted({row["epochs"] for row in rows if row["study"] == study})
    for key in ((arm, budget) for budget in epochs for arm in comparison.arms if arm != TRUNK):
        runs = {
            row["seed"]: row
            for row in rows
            if (row["study"], row["arm"], row["epochs"]) == (study, *key) and "error" not in row
        }
        if runs:
            found[key] = runs
    return found


def _common_seeds(runs: Runs, epochs: int) -> list[int]:
    """The seeds that all arms have finished with a budget."""
    return sorted(set.intersection(*(set(by_seed) for (_, budget), by_seed in runs.items() if budget == epochs)))


def _values(runs: Mapping[int, Row], name: str, seeds: Sequence[int]) -> list[float]:
    return [float(runs[seed][name]) for seed in seeds]


def _budgets(runs: Runs) -> list[int]:
    return sorted({epochs for _, epochs in runs})


# --- arms and their differences ---------------------------------------------------------------------------------------


def _arms(runs: Runs) -> Iterator[dict[str, Any]]:
    for (arm, epochs), by_seed in runs.items():
        test = _values(by_seed, "test_accuracy", list(by_seed))
        yield {
            "epochs": epochs,
            "arm": arm,
            "n": len(by_seed),
            "test_accuracy": statistics.mean(test),
            "sd": statistics.stdev(test) if len(test) > 1 else None,
            **{name: statistics.mean(_values(by_seed, name, list(by_seed)))
               for name in ("val_accuracy", "test_loss", "val_loss", "total_macs", "num_macs", "steps", "seconds")},
        }  # fmt: skip


def _formatted(arm: Mapping[str, Any]) -> dict[str, object]:
    deviation = "" if arm["sd"] is None else f" ± {100 * arm['sd']:.2f}"
    return {
        "E": arm["epochs"],
        "arm": arm["arm"],
        "n": arm["n"],
        "test accuracy ± sd, %": f"{100 * arm['test_accuracy']:.2f}{deviation}",
        "validation, %": f"{100 * arm['val_accuracy']:.2f}",
        "test loss": f"{arm['test_loss']:.4f}",
        "MACs, T": f"{arm['total_macs'] / 1e12:.2f}",
        "seconds": f"{arm['seconds']:.0f}",
    }


def differences(study: str, runs: Runs, comparison: Comparison) -> list[Difference]:
    """Every growing arm minus the best static arm, if all have been trained, and minus the reference."""
    found = []
    for epochs in _budgets(runs):
        seeds = _common_seeds(runs, epochs)
        at_budget = {arm: by_seed for (arm, budget), by_seed in runs.items() if budget == epochs}
        if not seeds:
            continue
        static = [arm for arm in comparison.arms if arm in STATIC]
        best = None
        if static and set(static) <= set(at_budget):
            validation = {arm: statistics.mean(_values(at_budget[arm], "val_accuracy", seeds)) for arm in static}
            best = max(validation, key=validation.__getitem__)
        for arm in at_budget:
            for other in dict.fromkeys((best, comparison.reference)):
                if arm in STATIC or other is None or other not in at_budget or other == arm:
                    continue
                ours, theirs = (np.array(_values(at_budget[one], "test_accuracy", seeds)) for one in (arm, other))
                test, n = paired_t(100 * (ours - theirs)), len(seeds)
                low, high, p = (float(value) if n > 1 else None for value in (test.low, test.high, test.p))
                found.append(
                    Difference(
                        study=study, arm=arm, other=other, epochs=epochs, is_best_static=other == best, n=n,
                        mean=float(test.mean), low=low, high=high, p=p,
                    )
                )  # fmt: skip
    return found


def _adjust(found: Sequence[Difference]) -> list[Difference]:
    """Holm-adjust p over the claims."""
    claims = [one for one in found if one.is_best_static and one.arm == "grown" and one.n >= _CLAIM_SEEDS]
    adjusted = dict(zip(claims, holm(np.array([one.p for one in claims])), strict=True))
    return [dataclasses.replace(one, adjusted_p=float(adjusted[one])) if one in adjusted else one for one in found]


def _formatted_difference(one: Mapping[str, Any]) -> dict[str, object]:
    is_known = one["n"] > 1
    return {
        "E": one["epochs"],
        "difference": f"{one['arm']} − {one['other']}{' (best static)' if one['is_best_static'] else ''}",
        "n": one["n"],
        "points": f"{one['mean']:+.2f}",
        "95 % interval": f"{one['low']:+.2f} to {one['high']:+.2f}" if is_known else None,
        "p": f"{one['p']:.2g}" if is_known else None,
        "p, Holm": None if one["adjusted_p"] is None else f"{one['adjusted_p']:.2g}",
    }


# --- curves -----------------------------------------------------------------------------------------------------------


def _curve(runs: Runs, arm: str, length: str) -> Curve:
    return [
        (statistics.mean(_values(by_seed, length, list(by_seed))),
         statistics.mean(_values(by_seed, "test_accuracy", list(by_seed))))
        for (name, _), by_seed in runs.items()
        if name == arm
    ]  # fmt: skip


def _curves(runs: Runs) -> Iterator[str]:
    """Where the static curves cross, and the transfer rho at each budget."""
    for one, other in (("host", "final"), ("host", "between"), ("between", "final")):
        for epochs in crossings(_curve(runs, one, "epochs"), _curve(runs, other, "epochs")):
            yield f"{one} and {other} cross at E = {epochs:.1f}"
    for (arm, epochs), by_seed in runs.items():
        if arm in STATIC or any(len(row["growth_steps"]) != 1 for row in by_seed.values()):
            continue
        host_steps = statistics.mean(row["growth_steps"][0] for row in by_seed.values())
        rho = transfer(
            _curve(runs, "final", "steps"),
            accuracy=statistics.mean(_values(by_seed, "test_accuracy", list(by_seed))),
            host_steps=host_steps,
            grown_steps=statistics.mean(_values(by_seed, "steps", list(by_seed))) - host_steps,
        )
        if rho is not None:
            share = statistics.mean(row["num_macs_before"] / row["num_macs"] for row in by_seed.values())
            yield f"E = {epochs}, {arm}: transfer rho {rho:.2f}; a step of the host costs {share:.2f} of a final one"


if __name__ == "__main__":
    main()
