"""Curves of decayed trainings: fitted together, so that a few short pilots are enough, and drawn many times over.

A network of one size that is trained for D epochs, its learning rate decayed to the end, reaches

    y(D) = E + B * (D / D0) ** -b

with y a quantity that falls, such as the loss, and D0 the middle of what was observed. Every size has its own value at
D0, E + B; its B and its b are drawn towards common ones, by which a size that has one or two points borrows the shape
of the others. A network that grows after D1 epochs as host, and is then trained for D2, is as good as one of the final
size after D2 + tau * g epochs, with g the epochs in which the final size reaches the loss of the host at D1. tau is 1
if exactly what the host has learned is carried over; rho = tau * g / D1 is what an epoch of the host is worth.

Sources: L(N, D) = E + A / N ** a + B / D ** b of Hoffmann et al. (2022), arXiv:2203.15556; the draws are those of
"randomize, then optimize", Bardsley et al. (2014): a parametric bootstrap that also resamples the prior.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

__all__ = ["Curves", "Trainings", "fit"]

Floats = NDArray[np.float64]

_EXPONENT = (np.log(1.0), 0.6)
"""Mean and standard deviation of the common log b. A small GPT and ResNets on CIFAR-10 had about 1."""
_AMPLITUDE_SD = 1.0
"""Of the common log B, whose mean is that of twice what the observed curves fall."""
_SIZE_SDS = (0.25, 0.12)
"""By how much log B and log b of a size differ from the common ones."""
_TRANSFER = (np.log(0.9), 0.4)
"""Of log tau. Trained copies of the blocks of a GPT and of ResNets had 0.8 to 1.1 in pilots."""
_MOST_WORTH = 1.0
"""What the host learns in an epoch is at most what the final size learns in so many."""
_NOISE_DF = 1.0
"""As how many observations of the noise what is assumed of it counts."""
_SHARED = 0.5
"""Share of the variance that trainings of one trunk have in common."""
_OUTLIER = 3.0
"""Residuals of more standard deviations than this weigh less."""
_TOLERANCE, _MAX_STEPS = 1e-5, 100
"""When a fit ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainings:
    """Decayed trainings, one an entry, for which y is observed or asked.

    Attributes:
        size: (n,) index of the size that each ended with.
        epochs: (n,) epochs at that size.
        host_epochs: (n,) epochs as host before it grew; 0 from scratch.
        trunk: (n,) index of what each shares its errors with.
    """

    size: NDArray[np.int64]
    epochs: Floats
    host_epochs: Floats
    trunk: NDArray[np.int64]

    @staticmethod
    def of(rows: Sequence[tuple[int, float, float, int]]) -> Trainings:
        """From (size, epochs, epochs as host, trunk) each."""
        size, epochs, host_epochs, trunk = np.array(rows, dtype=np.float64).reshape(-1, 4).T
        return Trainings(
            size=size.astype(np.int64), epochs=epochs, host_epochs=host_epochs, trunk=trunk.astype(np.int64)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """Fitted curves of all sizes, of which the first is the host; k draws of them.

    Attributes:
        draws: (k, p) parameters.
        noise: (k,) standard deviation of y between seeds, for each draw.
        scale: D0, in epochs.
    """

    draws: Floats
    noise: Floats
    scale: float

    def predict(self, trainings: Trainings) -> Floats:
        """Expected y (k, n) of trainings, one row a draw."""
        return _predict(self.draws, trainings, scale=self.scale)

    def worth(self, size: int, host_epochs: float) -> Floats:
        """Transfer rho (k,): epochs of a size that each of so many epochs as host, before growing to it, is worth."""
        epochs = np.array([host_epochs / self.scale])
        worth: Floats = np.exp(self.draws[:, -1:]) * _equivalent(_shapes(self.draws), np.array([size]), epochs) / epochs
        return worth[:, 0]


def fit(
    y: Floats, trainings: Trainings, *, num_sizes: int, noise: float, num_draws: int = 400, rng_seed: int = 0
) -> Curves:
    """Fit the curves to (n,) observed values of a quantity that falls with training.

    Args:
        y: the values.
        trainings: what they were observed of; every size from scratch.
        num_sizes: how many sizes there are.
        noise: what is assumed of the standard deviation between seeds, before the values show it.
        num_draws: how many draws of the curves.
        rng_seed: of the draws.
    """
    rng = np.random.default_rng(rng_seed)
    static = trainings.host_epochs == 0
    scale = float(np.exp(np.log(trainings.epochs[static]).mean()))
    prior = _prior(y, trainings, num_sizes=num_sizes, noise=noise)
    start = prior.mean.copy()
    start[_values(num_sizes)] = [np.median(y[trainings.size == size]) for size in range(num_sizes)]
    problem = _Problem(trainings=trainings, prior=prior, scale=scale)
    sigma, df = noise, _NOISE_DF
    for _ in range(4):  # the noise and the weight of the priors depend on each other
        best, weights = problem.solve(y, start, sigma=sigma)
        sigma, df = problem.noise(y, best, weights, assumed=noise)
        start = best
    shared = np.sqrt(_SHARED) * rng.standard_normal((num_draws, int(trainings.trunk.max()) + 1))[:, trainings.trunk]
    errors = shared + np.sqrt(1 - _SHARED) * rng.standard_normal((num_draws, len(y)))
    sigmas = sigma * np.sqrt(df / np.maximum(rng.chisquare(df, num_draws), 0.1 * df))
    centres = prior.mean + prior.sd * rng.standard_normal((num_draws, len(prior.mean)))
    draws = np.stack([
        problem.solve(y + one * error, best, sigma=one, weights=weights, centre=centre)[0]
        for one, error, centre in zip(sigmas, errors, centres, strict=True)
    ])  # fmt: skip
    return Curves(draws=draws, noise=sigmas, scale=scale)


# --- the model --------------------------------------------------------------------------------------------------------
#
# Parameters are log b, log B; of each size the value at D0, then the deviation of log B, then that of log b; log tau.


def _values(num_sizes: int) -> slice:
    return slice(2, 2 + num_sizes)


class _Shapes(NamedTuple):
    """E, B and b of all sizes, (..., s) each."""

    floor: Floats
    amplitude: Floats
    exponent: Floats

    def at(self, size: Any, epochs: Floats) -> Floats:
        """Values of sizes (n,) or one, after so many epochs, in units of D0."""
        return self.floor[..., size] + self.amplitude[..., size] * epochs ** -self.exponent[..., size]

    def epochs_to(self, size: Any, y: Floats) -> Floats:
        """Epochs, in units of D0, in which sizes reach y (..., n); enormous if never."""
        above = (y - self.floor[..., size]) / self.amplitude[..., size]
        return np.maximum(above, 1e-9) ** (-1 / self.exponent[..., size])


def _shapes(theta: Floats) -> _Shapes:
    num_sizes = (theta.shape[-1] - 3) // 3
    values, amplitudes, exponents = (theta[..., 2 + i * num_sizes : 2 + (i + 1) * num_sizes] for i in range(3))
    amplitude = np.exp(np.clip(theta[..., 1:2] + amplitudes, -40, 40))
    exponent = np.exp(np.clip(theta[..., 0:1] + exponents, -5, 2))
    return _Shapes(floor=values - amplitude, amplitude=amplitude, exponent=exponent)


def _equivalent(shapes: _Shapes, size: Any, host_epochs: Floats) -> Floats:
    """Epochs (..., n) in which sizes reach what the host has reached after (n,) epochs; all in units of D0."""
    return np.minimum(shapes.epochs_to(size, shapes.at(np.zeros_like(size), host_epochs)), _MOST_WORTH * host_epochs)


def _predict(theta: Floats, trainings: Trainings, *, scale: float) -> Floats:
    """Values (..., n) for parameters (..., p)."""
    shapes = _shapes(theta)
    epochs = np.broadcast_to(trainings.epochs / scale, (*theta.shape[:-1], len(trainings.epochs)))
    grown = trainings.host_epochs > 0
    if grown.any():
        worth = _equivalent(shapes, trainings.size[grown], trainings.host_epochs[grown] / scale)
        epochs = epochs.copy()
        epochs[..., grown] += np.exp(np.clip(theta[..., -1:], -5, 5)) * worth
    return shapes.at(trainings.size, epochs)


# --- fitting ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prior:
    """Normal priors of the parameters (p,)."""

    mean: Floats
    sd: Floats


def _prior(y: Floats, trainings: Trainings, *, num_sizes: int, noise: float) -> _Prior:
    falls = [np.ptp(y[trainings.size == size]) for size in range(num_sizes)]
    fall = max(2 * float(np.median(falls)), noise)
    zeros, ones = np.zeros(num_sizes), np.ones(num_sizes)
    mean = np.concatenate([[_EXPONENT[0], np.log(fall)], zeros, zeros, zeros, [_TRANSFER[0]]])
    amplitude_sd, exponent_sd = _SIZE_SDS
    broad = 10 * (np.ptp(y) + np.abs(y).mean())
    sd = np.concatenate([
        [_EXPONENT[1], _AMPLITUDE_SD], broad * ones, amplitude_sd * ones, exponent_sd * ones, [_TRANSFER[1]],
    ])  # fmt: skip
    mean[_values(num_sizes)] = np.median(y)
    return _Prior(mean=mean, sd=sd)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Problem:
    trainings: Trainings
    prior: _Prior
    scale: float

    def solve(
        self,
        y: Floats,
        start: Floats,
        *,
        sigma: float,
        weights: Floats | None = None,
        centre: Floats | None = None,
    ) -> tuple[Floats, Floats]:
        """Least squares of residuals and prior; returns also (n,) weights, in which outliers weigh less.

        Args:
            y: (n,) values.
            start: (p,) parameters to start from.
            sigma: standard deviation between seeds.
            weights: (n,) of the values; None: they are found, robustly.
            centre: (p,) of the prior; None: its mean.
        """
        centre = self.prior.mean if centre is None else centre
        root = (1.0 if weights is None else np.sqrt(weights)) / sigma
        step = self._step()

        def residuals(theta: Floats) -> Floats:
            data = (_predict(theta, self.trainings, scale=self.scale) - y) * root
            return np.concatenate([data, (theta - centre) / self.prior.sd], axis=-1)

        def jacobian(theta: Floats) -> Floats:
            up, down = np.split(residuals(theta + np.concatenate([np.diag(step), -np.diag(step)])), 2)
            return ((up - down) / (2 * step[:, None])).T

        options = {"method": "trf", "loss": "soft_l1", "f_scale": _OUTLIER} if weights is None else {"method": "lm"}
        options |= {"ftol": _TOLERANCE, "xtol": _TOLERANCE, "x_scale": self.prior.sd, "max_nfev": _MAX_STEPS}
        found = optimize.least_squares(residuals, start, jac=jacobian, **options)
        data = residuals(found.x)[: len(y)]
        return found.x, 1 / np.sqrt(1 + (data / _OUTLIER) ** 2)

    def noise(self, y: Floats, best: Floats, weights: Floats, *, assumed: float) -> tuple[float, float]:
        """Standard deviation between seeds, and its degrees of freedom."""
        residuals = _predict(best, self.trainings, scale=self.scale) - y
        free = len(y) - self._effective(best, sigma=assumed)
        # What a lone trunk of a size shares, its curve absorbs.
        seen = len(set(self.trainings.trunk.tolist())) / len(set(self.trainings.size.tolist()))
        total = float((weights * residuals**2).sum()) / (1 - _SHARED / max(seen, 1.0))
        df = _NOISE_DF + max(free, 0.0)
        return float(np.sqrt((_NOISE_DF * assumed**2 + total) / df)), df

    def _effective(self, theta: Floats, *, sigma: float) -> float:
        """How many parameters the data determine."""
        step = self._step()
        up, down = (_predict(theta + sign * np.diag(step), self.trainings, scale=self.scale) for sign in (1, -1))
        slopes = ((up - down) / (2 * step[:, None])).T / sigma
        information = slopes.T @ slopes
        return float(np.trace(np.linalg.solve(information + np.diag(self.prior.sd**-2.0), information)))

    def _step(self) -> Floats:
        """By how much parameters (p,) are changed for a derivative."""
        return 1e-6 * np.maximum(self.prior.sd, 1e-6)
