"""Learn from plans and their outcomes when growing pays, and judge that on families that it was not learned from.

A ridge regression predicts by how much growing ends ahead of the size that a plan would train from scratch. What that
is worth is measured with each family left out: the regret of growing where it says so, against fixed choices and the
plan without it. A policy that does not beat them all is off, and says why.

Figures and regrets are in units of what is worth a choice (0.1 points, 0.2 % of a loss), so that families compare.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev

from pydantic import TypeAdapter

from esper.errors import RunError
from esper.files import make_folder, read_json, write_atomically
from esper.simic.fit import fit

__all__ = ["FEATURES", "GROWN", "Cell", "GrowthPolicy", "learn", "read", "write"]

GROWN = "grown"
FEATURES = ("lead_of_growing", "lead_of_final")
"""What the pilots' curves expect: asinh of the lead of growing on the best size from scratch, and of the final size on
the host. More features predict families that were left out worse (docs/planning.md)."""
_MIN_CELLS, _MIN_FAMILIES = 12, 4
_RIDGE = float(len(FEATURES))
"""Penalty under which all features together are thought to explain half of the variance."""
_OWN = "the policy"
_FIXED = {
    "host": "always the host",
    "between": "always the size in between",
    "final": "always the final size",
    GROWN: "always growing at 30 %",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A plan, and where its options ended.

    Attributes:
        family: host, recipe and data.
        macs: the budget.
        features: in the order of `FEATURES`.
        figures: of each size, and of growing at 30 % (`GROWN`), had the whole budget been spent on it; higher is
            better.
        costs: what each loses because pilots have spent a part of the budget.
        planned: what the plan recommended without a policy: a size, or `GROWN`.
        static: the size that it would train if it did not grow.
    """

    family: str
    macs: float
    features: tuple[float, ...]
    figures: Mapping[str, float]
    costs: Mapping[str, float]
    planned: str
    static: str

    def regret(self, option: str, *, with_pilots: bool = False) -> float:
        """What an option lost against the best one."""
        return max(self.figures.values()) - self.figures[option] + (self.costs[option] if with_pilots else 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthPolicy:
    """A fitted policy.

    Attributes:
        features: names of its inputs.
        weights, mean, deviation: of each.
        bias: the mean lead of growing.
        num_cells: plans that it was learned from; those of one family and budget count once.
        regrets: its own and those of what it has to beat, means over families that were left out.
        is_active: whether plans use it.
        verdict: why, in a line.
    """

    features: tuple[str, ...] = FEATURES
    weights: tuple[float, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    bias: float
    num_cells: int = 0
    regrets: dict[str, float] = field(default_factory=dict)
    is_active: bool = False
    verdict: str = ""

    def lead(self, features: Sequence[float]) -> float:
        """By how much growing is expected to end ahead of the best size from scratch."""
        scaled = zip(self.weights, features, self.mean, self.deviation, strict=True)
        return self.bias + sum(weight * (value - middle) / deviation for weight, value, middle, deviation in scaled)


_SCHEMA = TypeAdapter(GrowthPolicy)


def write(policy: GrowthPolicy, path: Path) -> None:
    """Write it as JSON, in a folder that need not exist; raises `WriteError`."""
    make_folder(path.parent)
    write_atomically(path, _SCHEMA.dump_json(policy, indent=1).decode() + "\n")


def read(path: Path) -> GrowthPolicy:
    """Read it.

    Raises:
        RunError: it is missing, damaged, or was made for another version.
    """
    try:
        policy = read_json(path, _SCHEMA)
    except FileNotFoundError:
        raise RunError(f"{path}: no such file; esper simic writes it from folders of plans") from None
    vectors = (policy.weights, policy.mean, policy.deviation)
    if policy.features != FEATURES or {len(one) for one in vectors} != {len(FEATURES)}:
        raise RunError(f"{path}: made for another version of Esper; make it again with esper simic")
    return policy


def learn(cells: Sequence[Cell]) -> GrowthPolicy:
    """Fit a policy to cells (at least one), and judge it with every family left out in turn.

    It is active if it was learned from at least 12 cells of 4 families and loses less than every rival (the plan
    without it, and each fixed choice that all cells have), by more than the standard error over families.
    """
    families = sorted({cell.family for cell in cells})
    num_cells = len({(cell.family, round(math.log(cell.macs), 1)) for cell in cells})
    fixed = [name for name in _FIXED if all(name in cell.figures for cell in cells)]
    regrets: dict[str, list[float]] = {}
    for family in families if len(families) > 1 else ():
        policy = _fitted([cell for cell in cells if cell.family != family])
        lost = [_regrets(cell, policy, fixed) for cell in cells if cell.family == family]
        for name in lost[0]:
            regrets.setdefault(name, []).append(mean(one[name] for one in lost))
    is_active, verdict = _verdict(regrets, num_cells=num_cells, num_families=len(families))
    return dataclasses.replace(
        _fitted(cells),
        num_cells=num_cells,
        regrets={name: mean(values) for name, values in regrets.items()},
        is_active=is_active,
        verdict=verdict,
    )


def _fitted(cells: Sequence[Cell]) -> GrowthPolicy:
    """A policy that was not judged."""
    found = fit(
        [(list(cell.features), cell.figures[GROWN] - cell.figures[cell.static]) for cell in cells], ridge=_RIDGE
    )
    weights, middle, deviation = (tuple(found[name].tolist()) for name in ("weights", "mean", "deviation"))
    return GrowthPolicy(weights=weights, mean=middle, deviation=deviation, bias=float(found["bias"]))


def _regrets(cell: Cell, policy: GrowthPolicy, fixed: Sequence[str]) -> dict[str, float]:
    """What the policy lost, and its rivals; to the fixed choices, pilots are not charged."""
    own = GROWN if policy.lead(cell.features) > 0 else cell.static
    return {
        _OWN: cell.regret(own, with_pilots=True),
        "the plan without it": cell.regret(cell.planned, with_pilots=True),
        **{_FIXED[name]: cell.regret(name) for name in fixed},
    }


def _verdict(regrets: Mapping[str, Sequence[float]], *, num_cells: int, num_families: int) -> tuple[bool, str]:
    """Whether the policy is active, and why."""
    means = {name: mean(values) for name, values in sorted(regrets.items(), key=lambda item: mean(item[1]))}
    for rival in means:
        ahead = [other - own for other, own in zip(regrets[rival], regrets[_OWN], strict=True)]
        error = stdev(ahead) / math.sqrt(len(ahead))
        if rival != _OWN and mean(ahead) <= error:
            return False, (
                f"off: in families that were left out it loses {means[_OWN]:.2f} times what is worth a choice, and "
                f"{rival} {means[rival]:.2f} (difference {mean(ahead):+.2f} ± {error:.2f})"
            )
    if num_cells < _MIN_CELLS or num_families < _MIN_FAMILIES:
        return False, (
            f"off: it takes the outcomes of {_MIN_CELLS} plans from {_MIN_FAMILIES} families; there are {num_cells} "
            f"from {num_families}"
        )
    return True, (
        f"on: in families that were left out it loses {means[_OWN]:.2f} times what is worth a choice, all else more "
        f"({num_cells} plans of {num_families} families)"
    )
