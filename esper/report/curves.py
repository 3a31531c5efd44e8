"""Accuracy against length of training: where two curves cross, and what training the host was worth to what grew.

Curves are interpolated linearly in the logarithm of the length (compute, or steps).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["Curve", "crossings", "transfer"]

Curve = Sequence[tuple[float, float]]
"""Points (length, accuracy), in any order; lengths are above 0 and differ."""


def crossings(one: Curve, other: Curve) -> list[float]:
    """The lengths at which two curves cross, within the range that both cover; equality is no crossing."""
    (x_one, y_one), (x_other, y_other) = _arrays(one), _arrays(other)
    if len(one) < 2 or len(other) < 2:
        return []
    low, high = max(x_one[0], x_other[0]), min(x_one[-1], x_other[-1])
    grid = np.unique(np.concatenate([x_one, x_other, [low, high]]))
    grid = grid[(grid >= low) & (grid <= high)]
    ahead = np.interp(grid, x_one, y_one) - np.interp(grid, x_other, y_other)
    unequal = np.flatnonzero(ahead)
    found = []
    for i, j in itertools.pairwise(unequal):
        if ahead[i] * ahead[j] < 0:
            # Between points where the curves are equal it is their middle.
            share = ahead[i] / (ahead[i] - ahead[j])
            x = grid[i] + share * (grid[j] - grid[i]) if j == i + 1 else (grid[i + 1] + grid[j - 1]) / 2
            found.append(float(np.exp(x)))
    return found


def transfer(final: Curve, *, accuracy: float, host_steps: float, grown_steps: float) -> float | None:
    """How much of the host's training the grown network kept: the transfer rho.

    The grown network is as good as the final network trained from scratch for `rho * host_steps + grown_steps` steps.

    Args:
        final: accuracy of the final network from scratch, by steps.
        accuracy: that of the grown network.
        host_steps: steps before growth.
        grown_steps: steps after growth.

    Returns:
        None unless exactly one stretch of the curve passes the accuracy.
    """
    steps, accuracies = _arrays(final)
    above = accuracies - accuracy
    found = np.flatnonzero((above[1:] < 0) != (above[:-1] < 0))
    if len(found) != 1:
        return None
    first, last = found[0], found[0] + 1
    share = above[first] / (above[first] - above[last])
    equal_steps = np.exp(steps[first] + share * (steps[last] - steps[first]))
    return float((equal_steps - grown_steps) / host_steps)


def _arrays(curve: Curve) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logarithms of the lengths in ascending order, and the accuracies."""
    points = np.array(sorted(curve), dtype=float).reshape(-1, 2)
    return np.log(points[:, 0]), points[:, 1]
