"""Which pilots tell most for the same price? Plans from several designs of pilots, in worlds whose curves are known.

    python benchmarks/plan_pilots.py [--worlds 48] [--pilot-share 0.15] [--processes 2]

Every design spends the same share of the budget, so fewer pilots are longer ones. Half of the worlds have power laws,
as plans assume; in the others the curves bend: a training of D epochs is as good as one of D + d, with d of 0 to 2
epochs. Nothing is trained; 48 worlds of each kind take about six CPU minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import multiprocessing
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from esper.planning.judge import judge
from esper.planning.observations import Choice, Observation
from esper.planning.pilots import Ladder, Pilot, cost_of
from tests.planning.worlds import BUDGET, SIZES, World, question, random_world

_LADDER = Ladder(
    macs_per_epoch={size.name: size.macs_per_epoch for size in SIZES},
    warmup_epochs=0.0, decay=0.3, share=0.3, growth_until=0.6,
)  # fmt: skip
_ALL, _ENDS, _BETWEEN = ("host", "between", "final"), ("host", "final"), ("between",)
_POINTS = (1.0, 0.5, 0.25)


@dataclass(frozen=True, kw_only=True)
class Design:
    """Pilots as shares of the longest.

    Attributes:
        static: sizes, their points and the seed.
        grown: point and seed of each network that grows.
    """

    static: tuple[tuple[tuple[str, ...], tuple[float, ...], int], ...]
    grown: tuple[tuple[float, int], ...] = ((1.0, 0),)

    def pilots(self, longest: float) -> list[Pilot]:
        """Pilots up to a budget."""
        return [
            *(
                Pilot(size=size, share=None, macs=longest * point, seed=seed)
                for sizes, points, seed in self.static
                for size, point in itertools.product(sizes, points)
            ),
            *(Pilot(size="final", share=_LADDER.share, macs=longest * point, seed=seed) for point, seed in self.grown),
        ]


DESIGNS = {
    "one seed": Design(static=((_ALL, _POINTS, 0),)),
    "two seeds": Design(static=((_ALL, _POINTS, 0), (_ENDS, _POINTS[1:], 1)), grown=((1.0, 0), (0.5, 1))),
    "one seed, points 1 and 1/4": Design(static=((_ALL, (1.0, 0.25), 0),)),
    "one seed, points 1 and 1/2": Design(static=((_ALL, (1.0, 0.5), 0),)),
    "one seed, four points": Design(static=((_ALL, (*_POINTS, 0.125), 0),)),
    "one seed, points 1, 0.3, 0.1": Design(static=((_ALL, (1.0, 0.3, 0.1), 0),)),
    "one seed, grows at half": Design(static=((_ALL, _POINTS, 0),), grown=((0.5, 0),)),
    "one seed, none grows": Design(static=((_ALL, _POINTS, 0),), grown=()),
    "one seed, short size in between": Design(static=((_ENDS, _POINTS, 0), (_BETWEEN, _POINTS[1:], 0))),
    "one seed, no size in between": Design(static=((_ENDS, _POINTS, 0),)),
    "two full seeds": Design(static=((_ALL, _POINTS, 0), (_ALL, _POINTS, 1)), grown=((1.0, 0), (1.0, 1))),
}


@dataclass(frozen=True, kw_only=True)
class Bent(World):
    """A world whose trainings are as good as power laws say of `ahead` epochs more."""

    ahead: float

    def _static(self, name: str, epochs: float) -> float:
        return super()._static(name, epochs + self.ahead)

    def epochs_to(self, name: str, loss: float) -> float:
        """Epochs in which a size reaches a loss."""
        return max(super().epochs_to(name, loss) - self.ahead, 0.0)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A plan to make: design, number of the world, whether it is bent, share of the budget for pilots."""

    design: str
    number: int
    is_bent: bool
    pilot_share: float


@dataclass(frozen=True, kw_only=True)
class Found:
    """What came of it: MACs of the longest pilot; regret, and that of always growing, in loss; runs inside 80 %."""

    longest: float
    regret: float
    regret_of_growing: float
    inside: float


def plan(case: Case) -> Found:
    """Draw a world and its pilots, plan, and compare with the best option that the whole budget buys."""
    rng = np.random.default_rng(1000 + case.number)
    world = random_world(rng)
    if case.is_bent:
        world = Bent(**dataclasses.asdict(world), ahead=float(rng.uniform(0, 2)))
    rng, design = np.random.default_rng(5000 + case.number), DESIGNS[case.design]
    spent = case.pilot_share * BUDGET
    longest = spent / cost_of(design.pilots(1.0), _LADDER)
    pilots = design.pilots(longest)
    trunks = {
        size.name: tuple((1 - _LADDER.decay) * one.macs for one in pilots if (one.size, one.share) == (size.name, None))
        for size in SIZES
    }
    asked = question(pilot_macs=spent, trunks=trunks, decay=_LADDER.decay)
    made = judge(asked, _observed(world, pilots, rng), num_draws=40)
    choices = [Choice(size=size.name) for size in SIZES]
    choices += [Choice(size="final", share=share) for share in (0.1, 0.2, 0.3, 0.4, 0.5)]
    best = min(world.loss(choice, BUDGET) for choice in choices)
    shown = [(option.figure, world.run(option.choice, option.macs, rng=rng).figure) for option in made.options]
    return Found(
        longest=longest,
        regret=world.loss(made.recommended, made.chosen.macs) - best,
        regret_of_growing=world.loss(Choice(size="final", share=0.3), BUDGET) - best,
        inside=float(np.mean([interval.low <= figure <= interval.high for interval, figure in shown])),
    )


def _observed(world: World, pilots: list[Pilot], rng: np.random.Generator) -> list[Observation]:
    trunks: dict[tuple[str, int], float] = {}
    found = []
    for pilot in pilots:
        trunk = 0.0 if pilot.share else trunks.setdefault((pilot.size, pilot.seed), float(rng.standard_normal()))
        run = world.run(Choice(size=pilot.size, share=pilot.share), pilot.macs, rng=rng, trunk=trunk)
        found.append(dataclasses.replace(run, seed=pilot.seed))
    return found


def main() -> None:
    """Print a Markdown table, a row a design."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=48, help="of each kind (default: 48)")
    parser.add_argument("--pilot-share", type=float, default=0.15)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--designs", type=lambda text: text.split(";"), default=list(DESIGNS), help="by name; by ;")
    options = parser.parse_args()
    print("| worlds | pilots | longest | regret | against the first | inside 80 % |\n|---|---|---|---|---|---|")
    with multiprocessing.Pool(options.processes) as pool:
        for is_bent in (False, True):
            first: list[float] = []
            for name in options.designs:
                cases = [
                    Case(design=name, number=number, is_bent=is_bent, pilot_share=options.pilot_share)
                    for number in range(options.worlds)
                ]
                found = pool.map(plan, cases)
                regrets = [one.regret for one in found]
                first = first or regrets
                ahead = np.subtract(regrets, first)
                cells = [
                    "bent" if is_bent else "power laws", name, f"1/{BUDGET / found[0].longest:.0f}",
                    f"{np.mean(regrets):.4f}", f"{ahead.mean():+.4f} ± {ahead.std() / len(ahead) ** 0.5:.4f}",
                    f"{np.mean([one.inside for one in found]):.0%}",
                ]  # fmt: skip
                print(f"| {' | '.join(cells)} |", flush=True)
            print(f"Always growing at 30 %: {np.mean([one.regret_of_growing for one in found]):.4f}")


if __name__ == "__main__":
    main()
