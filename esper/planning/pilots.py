"""Which short trainings tell most for their price.

All pilots of one size and seed are one training at constant learning rate, their trunk, that is left at several points
for the decay: a longer pilot goes on from the trunk of the shorter one before it, and a network that grows from that
of its host. So each costs only what the others have not trained yet.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from esper.errors import ConfigError
from esper.planning.budget import PlanBudget

__all__ = ["Ladder", "Pilot", "choose_pilots", "cost_of", "trunk_before"]

_POINTS = (1.0, 0.5, 0.25)
"""Budgets of the pilots of a size, as shares of the longest."""
_STEP = 2**0.5
"""Between two budgets that the longest pilot may have: plans of other budgets then have pilots in common."""
_FIRST_STEP = -20
"""The shortest of these budgets: a thousandth of an epoch."""
_MOST_SEEDS = 4
_WARM = 1.25
"""A trunk is at least so many times as long as the warm-up of the learning rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pilot:
    """A training with the learning rate decayed to its end.

    Attributes:
        size: name of the network that it ends with.
        share: of `macs` after which the host grows; None: the size from scratch.
        macs: all that lead to it.
        seed: its `rng_seed`.
    """

    size: str
    share: float | None
    macs: float
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How many pilots there are, whatever their length.

    Attributes:
        seeds: those of pilots of all lengths.
        shorter_seeds: those of pilots of the host and the final network that are shorter than the longest.
        with_between: whether sizes in between have pilots.
    """

    seeds: tuple[int, ...]
    shorter_seeds: tuple[int, ...] = ()
    with_between: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """What pilots cost in a family of trainings.

    Attributes:
        macs_per_epoch: by size, the host first and the final network last.
        warmup_epochs: of the learning rate.
        decay: share of a training in which the learning rate decays.
        share: of the compute at which the host grows, at the end of an epoch.
        growth_until: share of the compute from which on nothing grows.
        epochs_between: between two points at which growth is considered.
    """

    macs_per_epoch: Mapping[str, float]
    warmup_epochs: float
    decay: float
    share: float
    growth_until: float
    epochs_between: int = 1

    @property
    def host(self) -> str:
        """The smallest size."""
        return next(iter(self.macs_per_epoch))

    @property
    def final(self) -> str:
        """The largest size."""
        return list(self.macs_per_epoch)[-1]

    def fits(self, size: str, macs: float) -> bool:
        """Whether a training has a trunk: the learning rate is warm before it decays."""
        return macs * (1 - self.decay) >= _WARM * self.warmup_epochs * self.macs_per_epoch[size]

    def grows_in(self, macs: float) -> bool:
        """Whether the host grows at about its share: it does so at the end of an epoch."""
        between = self.epochs_between * self.macs_per_epoch[self.host]
        at = math.ceil(self.share * macs / between - 1e-9) * between
        return self.fits(self.final, macs) and at < min(self.growth_until, 1.5 * self.share) * macs

    def pilots(self, longest: float, shape: Shape) -> list[Pilot]:
        """Pilots up to a budget, in an order in which each comes after those that it goes on from."""
        points = sorted(longest * point for point in _POINTS)
        pilots: list[Pilot] = []
        for seed in (*shape.seeds, *shape.shorter_seeds):
            is_full = seed in shape.seeds
            budgets = points if is_full else points[:-1]
            sizes = self.macs_per_epoch if is_full and shape.with_between else (self.host, self.final)
            pilots += [
                Pilot(size=size, share=None, macs=macs, seed=seed)
                for size in sizes
                for macs in budgets
                if self.fits(size, macs)
            ]
            growing = [macs for macs in budgets if self.grows_in(macs)]
            pilots += [Pilot(size=self.final, share=self.share, macs=macs, seed=seed) for macs in growing[-1:]]
        return sorted(pilots, key=lambda pilot: (pilot.macs, pilot.seed, pilot.share is not None))

    def is_enough(self, pilots: Sequence[Pilot]) -> bool:
        """Whether the host and the final network have two points, and one network grows."""
        points = [pilot.size for pilot in pilots if pilot.share is None]
        return all(points.count(size) > 1 for size in (self.host, self.final)) and len(points) < len(pilots)


def trunk_before(pilot: Pilot, others: Sequence[Pilot], *, ladder: Ladder) -> Pilot | None:
    """The pilot with the longest trunk that another can go on from; None: it begins at the first step."""
    size = ladder.host if pilot.share is not None else pilot.size
    usable = [
        other
        for other in others
        if other.share is None and (other.size, other.seed) == (size, pilot.seed)
        if (1 - ladder.decay) * other.macs < pilot.macs * (pilot.share or 1 - ladder.decay)
    ]
    return max(usable, key=lambda other: other.macs, default=None)


def cost_of(pilots: Sequence[Pilot], ladder: Ladder) -> float:
    """MACs of pilots, each trunk counted once."""
    before = (trunk_before(pilot, pilots, ladder=ladder) for pilot in pilots)
    shared = sum((1 - ladder.decay) * other.macs for other in before if other is not None)
    return sum(pilot.macs for pilot in pilots) - shared


def choose_pilots(ladder: Ladder, *, budget: PlanBudget, pilot_share: float, seed: int) -> list[Pilot]:
    """The longest pilots that a share of the budget pays, in the order in which they run.

    Three points of each size and a network that grows; a share that does not pay for that gets no size in between. What
    is left pays for other seeds: all but the longest of host and final network, or everything. Longer pilots come
    first: growth at ends of epochs leaves gaps between the lengths that are possible, and two seeds of half the length
    were no better where curves are power laws, and worse where they bend (`benchmarks/plan_pilots.py`).

    Args:
        ladder: what pilots cost.
        budget: what may be spent in all.
        pilot_share: of them for pilots.
        seed: the first seed.

    Raises:
        ConfigError: not even the shortest pilots fit.
    """
    allowed = pilot_share * budget.macs
    for shape in (Shape(seeds=(seed,)), Shape(seeds=(seed,), with_between=False)):
        affordable = itertools.takewhile(lambda design: design[1] <= allowed, _designs(ladder, shape))
        longest = max((longest for longest, _ in affordable), default=None)
        if longest is not None:
            break
    else:
        _, needed = next(_designs(ladder, shape))
        raise ConfigError(budget.too_little(needed, pilot_share=pilot_share))
    seeds = [tuple(range(seed, seed + num)) for num in range(2, _MOST_SEEDS + 1)]
    more = [Shape(seeds=(seed,), shorter_seeds=(seed + 1,)), *(Shape(seeds=some) for some in seeds)]
    for larger in more if shape.with_between else ():
        if cost_of(ladder.pilots(longest, larger), ladder) <= allowed:
            shape = larger
    return ladder.pilots(longest, shape)


def _designs(ladder: Ladder, shape: Shape) -> Iterator[tuple[float, float]]:
    """Budgets of the longest pilot, from the first one that is enough on, and what all pilots then cost."""
    unit = ladder.macs_per_epoch[ladder.final]
    for step in itertools.count(_FIRST_STEP):
        longest = float(f"{unit * _STEP**step:.3g}")  # the digits that the names of runs show
        pilots = ladder.pilots(longest, shape)
        if ladder.is_enough(pilots):
            yield longest, cost_of(pilots, ladder)
