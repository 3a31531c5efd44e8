"""Worlds whose curves are known, from which trainings are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from esper.contracts.metrics import MetricInfo
from esper.planning.observations import Choice, Observation, Question, Size

LOSS = MetricInfo(name="loss", label="loss", unit="nats", higher_is_better=False)
SIZES = tuple(
    Size(name=name, label=label, macs_per_epoch=macs, num_parameters=int(1000 * macs))
    for name, label, macs in (("host", "host", 0.5), ("between", "a size in between", 0.75), ("final", "final size", 1))
)
BUDGET = 64.0
"""MACs, in epochs of the final size."""


@dataclass(frozen=True)
class World:
    """Curves E + B * D ** -b of each size, and what growing carries over (`tau`, see `planning.curves`)."""

    floor: dict[str, float]
    amplitude: dict[str, float]
    exponent: dict[str, float]
    tau: float
    noise: float

    def loss(self, choice: Choice, macs: float) -> float:
        """Expected loss."""
        name = choice.size
        size = next(one for one in SIZES if one.name == name)
        epochs = (1 - (choice.share or 0)) * macs / size.macs_per_epoch
        if choice.share is not None:
            host_epochs = choice.share * macs / SIZES[0].macs_per_epoch
            epochs += self.tau * min(host_epochs, self.epochs_to(name, self._static("host", host_epochs)))
        return self._static(name, epochs)

    def epochs_to(self, name: str, loss: float) -> float:
        """Epochs in which a size reaches a loss."""
        return float(((loss - self.floor[name]) / self.amplitude[name]) ** (-1 / self.exponent[name]))

    def _static(self, name: str, epochs: float) -> float:
        return self.floor[name] + self.amplitude[name] * epochs ** -self.exponent[name]

    def run(self, choice: Choice, macs: float, *, rng: np.random.Generator, trunk: float = 0.0) -> Observation:
        """One training; `trunk`: the error that it shares with others, in standard deviations."""
        own = float(rng.standard_normal())
        loss = self.loss(choice, macs) + self.noise * (np.sqrt(0.5) * trunk + np.sqrt(0.5 if trunk else 1.0) * own)
        return Observation(
            size=choice.size,
            seed=0,
            macs=macs,
            host_macs=macs * (choice.share or 0.0),
            loss=loss,
            figure=loss,
            seconds=2 * macs,
        )


def random_world(rng: np.random.Generator) -> World:
    """A world in which the curves of host and final size cross at about 0.3 to 4 times the budget."""
    common = float(rng.uniform(0.4, 1.4))
    exponent = {size.name: common * float(rng.lognormal(0, 0.1)) for size in SIZES}
    amplitude = {size.name: float(rng.lognormal(0, 0.2)) for size in SIZES}
    crossing = BUDGET * float(np.exp(rng.uniform(np.log(0.3), np.log(4))))
    gap = amplitude["final"] * crossing ** -exponent["final"]
    gap -= amplitude["host"] * (2 * crossing) ** -exponent["host"]
    final = float(rng.uniform(0.3, 1.0))
    floor = {"host": final + gap, "between": final + gap * float(rng.uniform(0.3, 0.7)), "final": final}
    noise = final * float(np.exp(rng.uniform(np.log(0.001), np.log(0.01))))
    return World(
        floor=floor, amplitude=amplitude, exponent=exponent, tau=float(rng.uniform(0.75, 1.1)), noise=noise
    )  # fmt: skip


def pilots(world: World, rng: np.random.Generator, *, longest: float = 1 / 4) -> list[Observation]:
    """Pilots with up to this part of the budget: three points a size, and two forks that grow."""
    found = []
    for size in SIZES:
        trunk = float(rng.standard_normal())
        points = [(Choice(size=size.name), BUDGET * longest * part) for part in (1 / 4, 1 / 2, 1)]
        found += [world.run(choice, macs, rng=rng, trunk=trunk) for choice, macs in points]
    grown = Choice(size="final", share=0.3)
    return found + [world.run(grown, BUDGET * longest * part, rng=rng) for part in (1 / 2, 1)]


def question(*, macs: float | None = BUDGET, seconds: float | None = None, **more: Any) -> Question:
    """What to do with a budget."""
    return Question(sizes=SIZES, headline=LOSS, macs=macs, seconds=seconds, **more)
