"""What a training will show, from the trainings that were observed: loss, the task's first metric, and time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from esper.contracts.metrics import MetricInfo
from esper.errors import RunError
from esper.planning.curves import Curves, Trainings, fit
from esper.planning.observations import Choice, Interval, Observation, Prediction, Question, Size

__all__ = ["MAX_EXTRAPOLATION", "Forecast", "forecast", "interval", "mirror"]

Floats = NDArray[np.float64]

_NOISE = 0.005
"""Standard deviation between seeds, as a share of the value: language models had 0.2 to 0.4 %, images more."""
_CHANCE = 0.6
"""That of a percentage, as a share of what drawing other examples would make; runs are validated on the same ones."""
_QUANTILES = special.ndtri((np.arange(25) + 0.5) / 25)
"""Of a standard normal: how far one run ends from what is expected. The same for every draw, so that options differ by
their curves alone."""


MAX_EXTRAPOLATION = 4.0
"""Trainings more times as long than this as what was observed of their size are marked, and their intervals wider."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Curves of the loss and of the figure, fitted to observations.

    Attributes:
        sizes: those that were observed, by cost; the first is the host.
        headline: the task's first metric.
        loss, figure: their curves, the second of the figure as a quantity that falls.
        longest: epochs of the longest training from scratch of each size, by name.
        speed: MACs per second of each size from scratch, by name; without those that were not timed.
    """

    sizes: tuple[Size, ...]
    headline: MetricInfo
    loss: Curves
    figure: Curves
    longest: dict[str, float]
    speed: dict[str, float]

    def losses(self, choice: Choice, macs: Floats) -> Floats:
        """Expected losses (k, n) at (n,) budgets; one row a draw."""
        return np.maximum(self.loss.predict(self._trainings(choice, macs)), 0.0)

    def shortfalls(self, choice: Choice, macs: Floats) -> Floats:
        """Expected figures as quantities that fall, (k, n); see `mirror`."""
        expected = self.figure.predict(self._trainings(choice, macs))
        return np.maximum(expected, 0.0) if self.headline.unit == "%" else expected

    def loss_of(self, choice: Choice, macs: float) -> Prediction:
        """The loss of one run at a budget."""
        expected = self.losses(choice, np.array([macs]))
        return _prediction(expected, np.maximum(expected + self.loss.noise[:, None] * _QUANTILES, 0.0))

    def figure_of(self, choice: Choice, macs: float) -> Prediction:
        """The figure of one run at a budget.

        Beside the chance between seeds, they allow for curves that bend: each doubling beyond `MAX_EXTRAPOLATION` adds
        what the last doubling before it brought to the standard deviation. All options are taken to err together, so
        that comparisons leave this out. What is expected leaves out both, as comparisons do.
        """
        doublings = np.log2(max(self.extrapolation(choice, macs) / MAX_EXTRAPOLATION, 1.0))
        static = Choice(size=choice.size)
        longest = self.longest[choice.size] * self.sizes[self._index(choice.size)].macs_per_epoch
        fall = -np.diff(self.shortfalls(static, np.array([longest / 2, longest])))[:, 0]
        sd = np.hypot(self.figure.noise, doublings * fall)
        expected = self.shortfalls(choice, np.array([macs]))
        figures = mirror(expected + sd[:, None] * _QUANTILES, self.headline)
        if self.headline.unit == "%":
            figures = np.clip(figures, 0.0, 1.0)
        elif not self.headline.higher_is_better and (expected > 0).all():  # such as a loss
            figures = np.maximum(figures, 0.0)
        return _prediction(mirror(expected, self.headline), figures)

    def worth(self, choice: Choice, macs: float) -> Floats:
        """Transfer rho (k,) of growing at a budget; by the curves of the figure."""
        assert choice.share is not None
        host_epochs = choice.share * macs / self.sizes[0].macs_per_epoch
        return self.figure.worth(self._index(choice.size), host_epochs)

    def seconds(self, choice: Choice, macs: float) -> float | None:
        """Time that a training takes; None if one of its sizes was not timed."""
        host_macs = macs * (choice.share or 0.0)
        spent = {choice.size: macs - host_macs}
        if host_macs:
            spent[self.sizes[0].name] = host_macs
        if not self.speed.keys() >= spent.keys():
            return None
        return sum(macs / self.speed[name] for name, macs in spent.items())

    def epochs(self, choice: Choice, macs: float) -> float:
        """Passes over the data."""
        trainings = self._trainings(choice, np.array([macs]))
        return float((trainings.epochs + trainings.host_epochs)[0])

    def extrapolation(self, choice: Choice, macs: float) -> float:
        """How many times as long as the longest observed training of its size it is."""
        trainings = self._trainings(choice, np.array([macs]))
        last = float(trainings.epochs[0]) / self.longest[choice.size]
        first = float(trainings.host_epochs[0]) / self.longest[self.sizes[0].name]
        return max(last, first) if choice.share else last

    def _index(self, name: str) -> int:
        return [size.name for size in self.sizes].index(name)

    def _trainings(self, choice: Choice, macs: Floats) -> Trainings:
        share, index = choice.share or 0.0, self._index(choice.size)
        return Trainings(
            size=np.full(len(macs), index),
            epochs=(1 - share) * macs / self.sizes[index].macs_per_epoch,
            host_epochs=share * macs / self.sizes[0].macs_per_epoch,
            trunk=np.zeros(len(macs), dtype=np.int64),
        )


def mirror(values: Floats, headline: MetricInfo) -> Floats:
    """Figures as quantities that fall with training (errors for accuracies, else with their sign); those as figures."""
    if headline.unit == "%" and headline.higher_is_better:
        return 1 - values
    return -headline.sign * values


def interval(values: Floats) -> Interval:
    """Median and 80 % interval of draws."""
    low, median, high = np.quantile(values, [0.1, 0.5, 0.9])
    return Interval(low=float(low), median=float(median), high=float(high))


def _prediction(expected: Floats, shown: Floats) -> Prediction:
    """From what is expected (k, 1) by draw, and what runs of each draw show (k, m)."""
    low, high = np.quantile(shown, [0.1, 0.9])
    return Prediction(low=float(low), expected=float(expected.mean()), high=float(high))


def forecast(
    question: Question, observations: Sequence[Observation], *, num_draws: int = 400, rng_seed: int = 0
) -> Forecast:
    """Fit the curves.

    Sizes that were not observed from scratch are left out.

    Raises:
        RunError: the host was not observed, or no size at two budgets.
    """
    sizes, headline = question.sizes, question.headline
    static = [one for one in observations if one.host_macs == 0]
    known = tuple(size for size in sizes if any(one.size == size.name for one in static))
    if not known or known[0] != sizes[0]:
        raise RunError(
            f"esper plan: no training of the host ({sizes[0].label}) has finished, so there is nothing to judge by; "
            "let the pilots finish"
        )
    if not any(len({one.macs for one in static if one.size == size.name}) > 1 for size in known):
        raise RunError(
            "esper plan: every size was trained with one budget only, which shows no curve; at least the host needs "
            "two: let the pilots finish, or name more finished runs"
        )
    names = [size.name for size in known]
    used = [one for one in observations if one.size in names]
    keys = sorted({_trunk(one) for one in used})
    trainings = Trainings.of([
        (
            names.index(one.size),
            (one.macs - one.host_macs) / known[names.index(one.size)].macs_per_epoch,
            one.host_macs / known[0].macs_per_epoch,
            keys.index(_trunk(one)),
        )
        for one in used
    ])  # fmt: skip
    falling = mirror(np.array([one.figure for one in used]), headline)
    losses = np.array([one.loss for one in used])
    settings: dict[str, int] = {"num_sizes": len(known), "num_draws": num_draws, "rng_seed": rng_seed}
    return Forecast(
        sizes=known,
        headline=headline,
        loss=fit(losses, trainings, noise=_noise(losses), **settings),
        figure=fit(falling, trainings, noise=_noise(falling, question), **settings),
        longest={
            size.name: max(one.macs for one in static if one.size == size.name) / size.macs_per_epoch for size in known
        },
        speed={
            size.name: float(np.median(timed))
            for size in known
            if (timed := [one.macs / one.seconds for one in static if one.size == size.name and one.seconds])
        },
    )


def _noise(y: Floats, question: Question | None = None) -> float:
    """What is assumed of the standard deviation between seeds, before the values show it."""
    typical = float(np.median(np.abs(y)))
    if question is None or question.headline.unit != "%" or question.num_examples is None:
        return max(_NOISE * typical, 1e-12)
    return _CHANCE * float(np.sqrt(max(typical * (1 - typical), 1e-4) / question.num_examples))


def _trunk(one: Observation) -> tuple[str, int, bool]:
    return one.size, one.seed, one.host_macs > 0
